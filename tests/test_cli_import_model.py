"""The command import-model, the recipe step of the same name, and the import that extract makes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from small_data import write_npz_set

from pipeline.journal import runs
from stages.sensing.build import build_network
from store.catalog import FeatureStore

NET = """
from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential

def net(n_classes):
    return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, n_classes))
"""
IMPORT = "import-model --network mine.py:net --image-size 16"
EXTRACT = "extract --executor local --dataset few"
RECIPE = """\
recipe: imported
steps:
  f: {stage: import-model, network: mine.py:net, weights: w0.pt, dataset: few, image_size: 16}
  x: {stage: extract, model: f, dataset: few}
  y: {stage: extract, network: mine.py:net, weights: w1.pt, image_size: 16, dataset: few}
"""

Run = Callable[..., str]


@pytest.fixture
def run(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> Run:
    """Runs a command in a folder with ten classes of images, a network, and two sets of weights."""
    folder = tmp_path / "inputs"
    write_npz_set(folder / "few", 40, 40)
    (folder / "mine.py").write_text(NET)
    for number in (0, 1):
        torch.manual_seed(number)
        network = build_network(f"{folder / 'mine.py'}:net", 10)
        torch.save(network.state_dict(), folder / f"w{number}.pt")
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(folder))
    monkeypatch.chdir(folder)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def contents(store: FeatureStore, *, plain: bool = False) -> dict[str, bytes]:
    """The files of the models and features, without leases and receipts, which have times."""
    root = Path(store.location)
    files = [each for kind in ("models", "features") for each in root.glob(f"{kind}/**/*")]
    left_out = () if plain else ("lease", "receipts")
    return {
        str(each.relative_to(root)): each.read_bytes()
        for each in files
        if each.is_file() and each.parent.name not in left_out
    }


def test_importing_first_gives_what_extract_gives_alone(
    run: Run, store: FeatureStore, tmp_path: Path
) -> None:
    run(f"{IMPORT} --weights w0.pt --dataset few")
    run(EXTRACT)
    other = FeatureStore(str(tmp_path / "other"))
    alone = "--network mine.py:net --weights w0.pt --image-size 16"
    run(f"{EXTRACT} {alone} --store {other.location}")
    assert contents(store) == contents(other)
    assert len(contents(store)) > 5


def test_a_second_import_writes_nothing(run: Run, store: FeatureStore) -> None:
    first = run(f"{IMPORT} --weights w0.pt --dataset few")
    before = contents(store, plain=True)
    again = run(f"{IMPORT} --weights w0.pt --dataset few")
    assert again == first.replace("model net:", "model net exists already:")
    assert contents(store, plain=True) == before
    assert len(list(runs(store.location))) == 1


def test_a_model_that_extract_imported_is_found_by_the_command(
    run: Run, store: FeatureStore
) -> None:
    run(f"{EXTRACT} --network mine.py:net --weights w0.pt --image-size 16")
    before = contents(store, plain=True)
    run(f"{IMPORT} --weights w0.pt --dataset few")
    assert contents(store, plain=True) == before


def test_a_taken_name_is_refused(run: Run, store: FeatureStore) -> None:
    run(f"{IMPORT} --weights w0.pt --dataset few")
    before = contents(store, plain=True)
    refused = run(f"{IMPORT} --weights w1.pt --dataset few", code=2)
    assert "the store holds another model 'net' (weights_sha256" in refused
    assert contents(store, plain=True) == before
    assert run(f"{IMPORT} --weights w1.pt --dataset few --name other").startswith("model other: ")


def test_a_dry_run_writes_nothing_and_lists_the_outputs(run: Run, store: FeatureStore) -> None:
    would = run(f"{IMPORT} --weights w0.pt --dataset few --dry-run")
    assert would.startswith("would import mine.py:net as model net\nclasses in the order of")
    assert not contents(store)
    assert list(runs(store.location)) == []


@pytest.mark.parametrize("words", [IMPORT, f"{EXTRACT} --network mine.py:net --image-size 16"])
def test_a_killed_import_is_listed_and_resumed(
    run: Run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("store.artifacts.Artifact.publish", killed)
        run(f"{words} --weights w0.pt --dataset few", code=130)
    (model,) = [
        row for row in json.loads(run("status --json"))["contents"] if row["kind"] == "model"
    ]
    assert model["state"] == "partial"
    assert "stopped" in model["detail"]
    run("resume --executor local" if words is not IMPORT else "resume")
    assert store.artifact("model", "net").is_complete()
    assert "nothing to resume" in run("resume", code=2)


def test_without_a_data_set_the_classes_may_be_named(run: Run, store: FeatureStore) -> None:
    Path("classes.txt").write_text("\n".join("abcdefghij"))
    run(f"{IMPORT} --weights w0.pt --classes classes.txt")
    card = store.artifact("model", "net").card()["card"]
    assert (card["class_names"], card["family"]) == (list("abcdefghij"), "")
    assert "no model for few" in run(EXTRACT, code=2)
    split = run(f"{IMPORT} --weights w0.pt --classes classes.txt --split val", code=2)
    assert "--split has no effect without --dataset" in split
    run(f"{EXTRACT} --model net")


def test_a_missing_number_of_classes_is_explained(run: Run, store: FeatureStore) -> None:
    torch.save(build_network("torchvision:resnet18", 7).state_dict(), "seven.pt")
    refused = run("import-model --network torchvision:resnet18 --weights seven.pt", code=2)
    assert "trained for 7 classes" in refused
    assert refused.endswith("; --dataset or --classes sets the number of classes\n")
    assert not contents(store)


def test_it_is_a_step_of_recipes_beside_extract(run: Run, store: FeatureStore) -> None:
    Path("imported.yaml").write_text(RECIPE)
    command = "run imported.yaml --executor local"
    assert "imported.yaml:3: step f: the recipe would run code" in run(command, code=2)
    assert not contents(store)
    run(f"{IMPORT} --weights w1.pt --dataset few --dry-run")  # names the code
    assert json.loads(run(f"{command} --json"))["made"] == 3
    names = sorted(model.name for model in store.artifacts("model"))
    assert (names[0], names[1][:4], len(names)) == ("net", "net-", 2)
    assert json.loads(run(f"{command} --json"))["made"] == 0
    assert store.artifact("model", names[1]).card()["card"]["name"] == names[1]


def test_a_recipe_finds_a_model_that_the_command_imported(run: Run, store: FeatureStore) -> None:
    run(f"{IMPORT} --weights w0.pt --dataset few")
    Path("imported.yaml").write_text(RECIPE.partition("  y:")[0])
    assert json.loads(run("run imported.yaml --executor local --json"))["made"] == 1
    assert [model.name for model in store.artifacts("model")] == ["net"]


def test_a_step_whose_weights_do_not_exist_is_refused_before_the_first_one_runs(
    run: Run, store: FeatureStore
) -> None:
    run(f"{IMPORT} --weights w1.pt --dataset few --dry-run")
    Path("imported.yaml").write_text(RECIPE.replace("w1.pt", "nowhere.pt"))
    refused = run("run imported.yaml --executor local", code=2)
    assert (
        f"imported.yaml:5: step y: weights {Path('nowhere.pt').resolve()}: no such file" in refused
    )
    assert not contents(store)
