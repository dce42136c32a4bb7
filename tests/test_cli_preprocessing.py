"""Data sets whose images are prepared differently cannot be compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from model_of_before import import_as_before
from PIL import Image
from small_data import CLASSES, digits, write_npz_set

from pipeline.workspace import Workspace
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.ood.detect import Detect
from stages.sensing.build import build_network
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore

Run = Callable[..., str]
PHOTO, SQUARE = (30, 40), (40, 40)


def write_files(folder: Path, size: tuple[int, int], *, n: int = 12, seed: int = 0) -> Path:
    """Noise of one ``(H, W)``, all different; the brightness follows the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *size])
    for number in range(n):
        pixels = rng.integers(0, 64, (*size, 3), np.uint8) + np.uint8(90 * (seed % 3))
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def write_classes(folder: Path, size: tuple[int, int], seed: int = 0) -> None:
    for at, split in enumerate(("train", "test")):
        for label, name in enumerate(CLASSES):
            write_files(folder / split / name, size, n=4, seed=300 * seed + 30 * at + label)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of all layouts, and a store with features, models and heads."""
    root = tmp_path_factory.mktemp("made")
    write_classes(root / "photos", PHOTO)
    write_classes(root / "squares", SQUARE)
    write_classes(root / "small", (28, 28))
    write_classes(root / "exact", (32, 32))
    write_files(root / "loose-photos" / "some", PHOTO, seed=7)
    write_files(root / "loose-squares" / "some", SQUARE, seed=7)
    write_classes(root / "other-photos", PHOTO, seed=9)
    write_npz_set(root / "digits8", 40, 40)
    images, labels = digits(30)
    rng = np.random.default_rng(5)
    for name, size in (("wide", (28, 32)), ("large", (64, 64)), ("native", (32, 32))):
        pixels = rng.integers(0, 25, (len(images), *size, 3), np.uint8)
        pixels += 25 * labels.astype(np.uint8).reshape(-1, 1, 1, 1)
        np.savez(root / f"{name}.npz", images=pixels, labels=labels)
    for classes in (3, 10):
        torch.manual_seed(0)
        torch.save(build_network("cnn2", classes).state_dict(), root / f"w{classes}.pt")
    return root


@pytest.fixture
def run(
    store: FeatureStore,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    intro_pipe: Command,
) -> Run:
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(made))
    monkeypatch.chdir(tmp_path)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out + err

    return command


def extract(dataset: str, more: str = "", classes: int = 3, made: str = "") -> str:
    place = f"extract --executor local --dataset {dataset} --network cnn2"
    return f"{place} --weights {made}/w{classes}.pt {more}"


def files_in(folder: str | Path) -> set[Path]:
    return set(Path(folder).rglob("*"))


# Corrupting


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("photos", "photos test: stored images are 30x40, expected 32x32 or smaller squares"),
        ("squares", "squares test: stored images are 40x40, expected"),
        ("large.npz", "large test: stored images are 64x64, expected"),
        ("wide.npz", "wide test: stored images are 28x32, expected"),
    ],
)
def test_images_that_would_lose_pixels_or_shape_are_not_corrupted(
    run: Run, store: FeatureStore, made: Path, dataset: str, said: str
) -> None:
    before = files_in(store.location) | files_in(made)
    words = f"corrupt --dataset {dataset} --corruptions contrast --executor local"
    for more in ("", " --dry-run"):
        refused = run(words + more, code=2)
        assert said in refused
        assert "become 32x32" not in refused
        assert "accept with --image-size 32 that they are resized" in refused
    assert files_in(store.location) | files_in(made) == before


def test_images_are_shrunk_where_that_is_accepted(run: Run, tmp_path: Path) -> None:
    words = "corrupt --dataset photos --corruptions contrast --executor local --image-size 32"
    said = run(f"{words} --out {tmp_path}/c")
    assert "photos test: images of 30x40 become 32x32" in said
    plan = json.loads((tmp_path / "c" / "plan.json").read_text())
    assert plan["inputs"]["source"]["resize"] == "bilinear-antialias ->32x32 (stretched)"
    assert np.load(tmp_path / "c" / "contrast.npy").shape == (60, 32, 32, 3)


@pytest.mark.parametrize(
    ("dataset", "note"),
    [
        ("digits --limit 5", "digits test: images of 8x8 become 32x32"),
        ("digits8", "digits8 test: images of 8x8 become 32x32"),
        ("small", "small test: images of 28x28 become 32x32"),
        ("exact", ""),
        ("native.npz", ""),
    ],
)
def test_small_squares_are_enlarged_with_a_note(
    run: Run, tmp_path: Path, dataset: str, note: str
) -> None:
    words = f"corrupt --dataset {dataset} --corruptions contrast --executor local"
    said = run(f"{words} --out {tmp_path}/c")
    assert note in said
    assert ("become 32x32" in said) == bool(note)


# Out-of-distribution detection


def prepared(run: Run, made: Path, dataset: str, classes: int = 3) -> None:
    run(extract(dataset, "--model net", classes, str(made)))


def ood(inside: str, outside: str) -> str:
    words = f"ood --in {inside} --out {outside} --model net --head none --detector msp"
    return f"{words} --executor local --resamples 0"


@pytest.mark.parametrize(
    ("inside", "outside"), [("photos", "loose-photos"), ("photos", "loose-squares,loose-photos")]
)
def test_stretched_photographs_are_not_compared_with_cropped_ones(
    run: Run, store: FeatureStore, inside: str, outside: str
) -> None:
    import_as_before(store, sorted(CLASSES))
    run(f"extract --executor local --dataset {inside} --model net")
    before = files_in(store.location)
    for more in ("", " --dry-run"):
        said = run(ood(inside, outside) + more, code=2)
        assert f"images of {inside} are stretched (bilinear-antialias ->32x32 (stretched))" in said
        assert "those of loose-photos are cropped (bilinear-antialias shorter side ->32" in said
        assert "import or train the model again under another name, which then has one rule" in said
    assert files_in(store.location) == before


def test_a_step_of_a_recipe_refuses_stored_photographs_of_two_shapes(
    run: Run, store: FeatureStore, made: Path
) -> None:
    import_as_before(store, sorted(CLASSES))
    for name in ("photos", "squares", "loose-photos"):
        run(f"extract --executor local --dataset {name} --model net")
    workspace = Workspace(store, str(made))

    def check(inside: str) -> None:
        stage = Detect(features=f"{inside}@net", against="loose-photos@net", heads=())
        stage.job(workspace).check()

    check("squares")
    with pytest.raises(
        InputError, match=r"images of photos are stretched .* loose-photos are crop"
    ):
        check("photos")


@pytest.mark.parametrize(
    ("inside", "outside", "classes"),
    [
        ("photos", "loose-squares", 3),  # squares are the same by either rule
        ("photos", "other-photos", 3),
        ("photos", "loose-photos", 3),  # one rule for all layouts
        ("squares", "loose-photos", 3),
        ("native.npz", "loose-photos", 10),  # the published protocol: CIFAR against textures
        ("digits8", "loose-photos", 10),
        ("digits8", "uniform-noise --rows 20", 10),
    ],
)
def test_sets_that_keep_their_shape_are_compared_with_any_other(
    run: Run, made: Path, inside: str, outside: str, classes: int
) -> None:
    prepared(run, made, inside, classes)
    assert "auroc" in run(ood(inside, outside))


# Heads trained on images that were prepared differently


SHORT = "--epochs 60 --weight-decay 0 --layers 8 --batch-size 8 --lr 0.05"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5", "mean: [0.5, 0.5, 0.5], found [0.4914"),
        ("--std 0.5,0.5,0.5", "std: [0.5, 0.5, 0.5], found [0.2023"),
        ("--image-size 28", "image_size: 28, found 32"),
    ],
)
def test_a_head_is_refused_for_images_that_were_prepared_differently(
    run: Run, store: FeatureStore, made: Path, more: str, said: str
) -> None:
    run(extract("digits8", "--split train --model net", 10, str(made)))
    run(extract("digits8", f"--model other {more}", 10, str(made)))
    run(f"train-head --features digits8-train@net --name h {SHORT}")
    before = files_in(store.location)
    for words in ("", "--head h", "--head H=h", "--dry-run"):
        refused = run(f"evaluate --features digits8-test@other --resamples 0 {words}", code=2)
        assert "head 'h' was trained on digits8-train@net-" in refused
        assert "prepared differently from those of digits8-test@other-" in refused
        assert said in refused
    assert files_in(store.location) == before
    photo = made / "photos" / "test" / CLASSES[0] / "00.png"
    refused = run(f"predict --head h --model other {photo}", code=2)
    assert "prepared differently from those of model 'other'" in refused


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --features digits8-test@other --resamples 0 --json",
        "ood --in digits8 --out uniform-noise --rows 20 --model other --detector msp "
        "--executor local --resamples 0 --json",
    ],
)
def test_a_result_that_exists_is_read_although_a_new_one_would_be_refused(
    run: Run, store: FeatureStore, made: Path, words: str
) -> None:
    run(extract("digits8", "--split train --model net", 10, str(made)))
    run(extract("digits8", "--model other --std 0.5,0.5,0.5", 10, str(made)))
    run(f"train-head --features digits8-train@net --name h {SHORT}")
    (place,) = Path(store.location, "features").glob("digits8-train@net-*")
    away = place.rename(place.parents[1] / "away")  # without them a head is not checked
    run(f"{words} --head h")
    (result,) = store.artifacts("result")
    away.rename(place)
    for how in ("--head h", "--head h --dry-run"):
        assert result.name in run(f"{words} {how}")
    refused = run(f"{words} --head h --resamples 5", code=2)
    assert "prepared differently from those of digits8-test@other-" in refused
    assert run(f"{words} --head h --resamples 5 --dry-run", code=2) == refused


def test_data_sets_resized_by_two_rules_have_their_own_remedy(
    run: Run, store: FeatureStore
) -> None:
    import_as_before(store, sorted(CLASSES))
    run("extract --executor local --dataset photos --split train --model net")
    run("extract --executor local --dataset loose-photos --model net")
    run(f"train-head --features photos-train@net --name h {SHORT}")
    remedy = "import or train the model again under another name, which then has one rule for all"
    for more in ("", " --dry-run"):
        pair = "--features photos-train@net --against loose-photos@net"
        refused = run(f"analyse {pair} {more}", code=2)
        assert f"found bilinear-antialias ->32x32 (stretched)): {remedy}" in refused
        assert "one --model" not in refused
        words = ood("loose-photos", "uniform-noise --rows 20").replace("--head none", "--head h")
        refused = run(words + more, code=2)
        assert f"train a head on images that are prepared in the same way, or {remedy}" in refused
        assert "head's model" not in refused


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--mean 0.5,0.5,0.5", "mean: [0.5, 0.5, 0.5], found [0.4914"),
        ("--image-size 28", "image_size: 28, found 32"),
        ("--classes {made}/order.txt", "classes: label 0 is 'two', found 'zero'"),
    ],
)
def test_analyse_refuses_to_compare_sets_that_were_prepared_differently(
    run: Run, store: FeatureStore, made: Path, more: str, said: str
) -> None:
    (made / "order.txt").write_text("two\none\nzero\n")
    (made / "names.txt").write_text("zero\none\ntwo\n")
    run(extract("exact", f"--model net --classes {made}/names.txt", 3, str(made)))
    run(extract("exact", f"--split train --model other {more.format(made=made)}", 3, str(made)))
    before = files_in(store.location)
    for words in ("", "--dry-run"):
        pair = "--features exact-test@net --against exact-train@other"
        assert said in run(f"analyse {pair} {words}", code=2)
    assert files_in(store.location) == before


def test_of_two_heads_the_one_that_fits_is_chosen(
    run: Run, store: FeatureStore, made: Path
) -> None:
    run(extract("digits8", "--split train --model net", 10, str(made)))
    run(extract("digits8", "--split train --model other --std 0.5,0.5,0.5", 10, str(made)))
    for model in ("net", "other"):
        run(f"train-head --features digits8-train@{model} --name of-{model} {SHORT}")
    run("evaluate --features digits8-train@other --resamples 0")
    (result,) = store.artifacts("result")
    assert result.card()["contenders"]["H"]["head"] == "of-other"


# Predicting


def test_predict_resizes_as_the_training_images_were(run: Run, made: Path) -> None:
    run(extract("photos", "--split train --model net", 3, str(made)))
    run(f"train-head --features photos-train@net --name h {SHORT}")
    files = made / "photos" / "test" / CLASSES[0]
    said = run(f"predict --head h {files} --format csv")
    assert "stretched" not in said


@pytest.mark.parametrize(
    ("dataset", "note"),
    [
        ("digits8", "4 of 4 images are not 8x8, as the training images of head 'h': they are crop"),
        ("native.npz", "4 of 4 images are not 32x32, as the training images of head 'h'"),
    ],
)
def test_predict_notes_photographs_for_a_head_of_arrays(
    run: Run, made: Path, dataset: str, note: str
) -> None:
    split = "--split train" if dataset == "digits8" else ""
    run(extract(dataset, f"{split} --model net", 10, str(made)))
    name = dataset.partition(".")[0]
    run(f"train-head --features {name}@net --name h {SHORT}")
    assert note in run(f"predict --head h {made}/photos/test/{CLASSES[0]}")


def test_predict_notes_nothing_for_images_of_the_size_of_the_arrays(run: Run, made: Path) -> None:
    run(extract("native.npz", "--model net", 10, str(made)))
    run(f"train-head --features native@net --name h {SHORT}")
    assert "are not" not in run(f"predict --head h {made}/exact/test/{CLASSES[0]}")


def test_predict_notes_an_unknown_resize_rule(run: Run, store: FeatureStore, made: Path) -> None:
    import_as_before(store, sorted(CLASSES))
    run("extract --executor local --dataset photos --model net")
    run(f"train-head --features photos@net --name h {SHORT}")
    for found in store.feature_sets():
        shutil.rmtree(found.shard_set.storage.location)
    files = f"{made}/photos/test/{CLASSES[0]}"
    assert "4 of 4 images are not square, and the resize rule of head 'h'" in run(
        f"predict --head h {files}"
    )
    assert "are not" not in run(f"predict --head h {made}/squares/test/{CLASSES[0]}")


@pytest.mark.parametrize("is_old", [False, True])
def test_predictions_equal_those_of_the_stored_features(
    run: Run, store: FeatureStore, made: Path, is_old: bool
) -> None:
    if is_old:
        import_as_before(store, sorted(CLASSES))
        run("extract --executor local --dataset photos --model net")
    else:
        run(extract("photos", "--split test --model net", 3, str(made)))
    run(f"train-head --features photos@net --name h {SHORT}")
    found = store.open("photos@net")
    files = " ".join(str(made / "photos" / "test" / name) for name in sorted(CLASSES))
    rows = json.loads(_list(run(f"predict --head h {files} --json")))
    stored = found.samples()["confidence"].to_numpy()
    assert np.allclose([row["f_confidence"] for row in rows], stored, atol=1e-5)
    old, new = "->32x32 (stretched)", "shorter side ->32, centre 32x32"
    rule = found.plan["inputs"]["source"]["resize"]
    assert rule == f"bilinear-antialias {old if is_old else new}"
    assert (rule == SourceSpec("photos", "test", str(made)).open().resize) == is_old


@pytest.mark.parametrize(
    ("dataset", "classes"), [("photos", 3), ("digits8", 10), ("native.npz", 10)]
)
def test_a_model_of_before_keeps_its_plans_when_it_is_imported_again(
    run: Run, store: FeatureStore, made: Path, dataset: str, classes: int
) -> None:
    names = sorted(CLASSES) if classes == 3 else [str(n) for n in range(classes)]
    import_as_before(store, names)
    run(f"extract --executor local --dataset {dataset} --model net")
    (before,) = store.feature_sets()
    again = run(extract(dataset, "--model net --json", classes, str(made)))
    assert '"n_computed": 0' in again
    assert [each.name for each in store.feature_sets()] == [before.name]
    assert "resizing" in run(extract(dataset, "--model net --resize 40", classes, str(made)), 2)


@pytest.mark.parametrize(
    ("dataset", "old", "new"),
    [
        ("photos", "->32x32 (stretched)", "shorter side ->32, centre 32x32"),
        ("digits8", "8x8->32x32", "8x8->32x32"),
    ],
)
def test_a_training_goes_on_with_the_rule_with_which_it_was_begun(
    store: FeatureStore, made: Path, dataset: str, old: str, new: str
) -> None:
    """Version 0.6 planned class folders as if their images had been stretched on request."""
    stage = TrainSensing(dataset=dataset, network="cnn2", preset="quick", name="net")
    before = stage.model_copy(update={"resize": (32, 32)}).plan(Workspace(store, str(made)))
    fresh = stage.plan(Workspace(store, str(made)))
    store.prepare().artifact("model", "net").claim(before)
    again = stage.plan(Workspace(store, str(made)))

    rules = [each["inputs"]["source"]["resize"] for each in (before, fresh)]
    assert rules == [f"bilinear-antialias {old}", f"bilinear-antialias {new}"]
    assert again == before


def _list(text: str) -> str:
    return text[text.index("[") : text.rindex("]") + 1]
