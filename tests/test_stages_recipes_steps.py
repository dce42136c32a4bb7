"""Parameters of each kind of step, and what a recipe finds in a store."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import make_in
from small_data import write_npz_set
from tiny_recipe import TINY, run_tiny, tiny_run, write_tiny_data

from pipeline.errors import RecipeError
from pipeline.stage import State
from stages.data.registry import SourceSpec
from stages.recipes.shipped import recipe_of
from stages.recipes.steps import kinds
from stages.report.figures import FIGURES as DRAWN
from stages.report.paper import paper_numbers
from stages.report.vocabulary import COLUMNS, FIGURES, PAPER_TABLES
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore
from store.plan import readable_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data root and a store in which the recipe has been run; leave them as they are."""
    place = tmp_path_factory.mktemp("tiny")
    write_tiny_data(place / "data")
    store = FeatureStore(str(place / "store"))
    report = run_tiny(store, place / "data")
    assert all(status.is_complete for status in report.statuses)
    return place


@pytest.fixture
def place(made, tmp_path):
    """The same, of the test's own."""
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own"


def states(place: Path, text: str = TINY, **changes: str):
    work = tiny_run(FeatureStore(str(place / "store")), place / "data", text, changes)
    return {status.instance.label: status for status in work.statuses}


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_of(text, "tiny.yaml")
    return str(caught.value)


# What keys take


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    loss: $loss\n", "    loss: mze\n", "19: step H: loss: expected one of ce, mse-m"),
        ("[mse-m, ce]", "[mze]", "19: step H: loss: expected one of ce, mse-m"),
        ("layers: [20]", "layers: [0]", "20: step H: layers.0: expected greater than 0"),
        ("seeds: [0, 1]", "seeds: []", "21: step H: seeds: "),
        ("seeds: [0, 1]", "seeds: [1, 1]", "15: step H: seeds: expected different ones"),
        ("reads: features", "reads: feature", "27: step scaled: reads: expected some of"),
        ("reads: features", "reads: features\n    loss: ce", "24: step scaled: head: reading"),
        ("preset: quick", "preset: slow", "step f: preset: expected one of paper, paper-crop"),
        ("[contrast,", "[contrst,", "10: step hard: corruptions.0: expected one of brightness"),
        ("images: hard, ", "", "14: step corrupted: expected one data set"),
        (
            "images: hard",
            "images: hard, dataset: tiny",
            "14: step corrupted: expected one data set",
        ),
        ("model: f}", "model: train}", "13: step clean: model: expected a step of stage"),
        ("[accuracy, ece]", "[accuracy, eec]", "step report: table.metrics.1: expected one of"),
        ("[gain-by-corruption]", "[gain]", "step report: figures.0: expected one of accuracy-vs"),
        ("results: [judged]", "results: [H]", "step report: results: expected a step of stage"),
        ('"H, {loss}": H', "H: H", "step judged: heads: 'H' would name several"),
        ("temperature: temperature}", "f: temperature}", "heads: 'f', the label of 'temperature'"),
        ("temperature: temperature}", "'': temperature}", "heads: '', the label of 'temperature'"),
        ("to: $corrupted", "to: ../../$corrupted", "10: step hard: to: expected a name under the"),
        ("to: $corrupted", "to: /tmp/$corrupted", "10: step hard: to: expected a name under the"),
        ("to: $corrupted", "to: ~/$corrupted", "10: step hard: to: expected a name under the"),
        (
            "preset: quick",
            "classes: [0, 1]",
            "11: step f: classes.0: expected a valid string, found 0",
        ),
        ("preset: quick", "classes: one.txt", "11: step f: classes: expected a valid tuple"),
        ("to: $corrupted", "to: .", "10: step hard: to: expected a name under the"),
    ],
)
def test_a_wrong_key_is_refused_with_its_line(old, new, message):
    assert old in TINY
    found = refusal(TINY.replace(old, new, 1))

    assert message in found
    assert re.match(r"tiny\.yaml:\d+: ", found)
    assert "\n" not in found


@pytest.mark.parametrize("axis", ["seed", "accuracy", "contender", "n_seeds", "set"])
def test_an_axis_that_a_report_has_for_a_column_is_refused(axis):
    text = TINY.replace("f: {stage", f"f: {{each: {{{axis}: [1]}}, stage")

    assert refusal(text).startswith(f"tiny.yaml:11: step f: an axis cannot be called '{axis}'")


def test_a_head_may_have_an_axis_that_the_report_does_not_see():
    text = TINY.replace("each: {loss: $losses}", "each: {loss: $losses, seed: [0, 1]}")

    assert recipe_of(text.replace("H, {loss}", "H, {loss}, {seed}"), "tiny.yaml")


def test_every_column_of_results_and_reports_is_refused_as_an_axis(made):
    files = [*made.glob("store/results/*/*.parquet"), *made.glob("store/reports/*/*.csv")]
    tables = [
        pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path) for path in files
    ]

    assert len(tables) > 4
    assert {column for table in tables for column in table.columns} <= set(COLUMNS)


def test_figures_and_tables_are_those_of_the_reports():
    assert set(DRAWN) <= set(FIGURES)
    assert set(PAPER_TABLES) == set(paper_numbers()["table"])


def test_every_kind_is_called_as_its_name_says():
    assert all(name == kind.name for name, kind in kinds().items())


# What is found


def test_a_finished_recipe_is_complete(made):
    assert {status.state for status in states(made).values()} == {State.COMPLETE}


def test_names_are_readable_and_end_in_a_distinction(made):
    found = states(made)

    assert re.fullmatch(r"cnn2-[0-9a-f]{8}", found["f"].detail)
    assert found["H[loss=ce]"].detail.startswith(f"{found['f'].detail}-H-")
    assert found["scaled"].detail.startswith(f"{found['f'].detail}-f-")


def test_a_model_that_was_trained_by_hand_is_used(tmp_path):
    write_tiny_data(tmp_path / "data")
    store = FeatureStore(str(tmp_path / "store"))
    stage = TrainSensing(dataset="tiny", preset="quick", name="mine", epochs=1)
    make_in(store, stage, tmp_path / "data")
    found = states(tmp_path, epochs="1")["f"]

    assert (found.state, found.detail) == (State.COMPLETE, "mine")


def test_a_head_of_the_same_plan_is_used_under_any_name(place):
    heads = place / "store" / "heads"
    name = states(place)["H[loss=ce]"].detail
    (heads / name).rename(heads / "mine")

    assert states(place)["H[loss=ce]"].detail == "mine"


def test_features_that_miss_a_shard_are_partial(place):
    features = place / "store" / "features" / states(place)["train"].detail
    (features / "receipts" / "00001.json").unlink()
    found = states(place)

    assert (found["train"].state, found["H[loss=ce]"].state) == (State.PARTIAL, State.MISSING)
    assert found["train"].detail.startswith("2 of 3 shards of tiny-train@cnn2-")
    assert found["H[loss=ce]"].detail == "waits for train"


def test_an_unfinished_head_is_partial(place):
    head = place / "store" / "heads" / states(place)["scaled"].detail
    (head / "head.json").unlink()
    found = states(place)["scaled"]

    assert found.state == State.PARTIAL
    assert found.detail == f"0 of 40 epochs of {head.name}"


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


LISTED = f"classes: [{', '.join(NAMES)}]"


@pytest.mark.parametrize("step", ["f", "clean", "corrupted"])
def test_classes_are_named_in_a_recipe_as_on_the_command_line(place, step):
    text = re.sub(f"  {step}: {{(.*)}}", rf"  {step}: {{\1, {LISTED}}}", TINY)
    assert LISTED in text

    found = states(place, text)[step]

    assert found.state == State.STALE
    assert "class_names" in found.detail


def test_classes_of_a_corrupted_set_are_named_in_a_recipe(place):
    text = TINY.replace("stage: corrupt,", f"stage: corrupt, {LISTED},")
    assert LISTED in text

    found = states(place, text, corrupted="other-c")["hard"]

    assert found.state == State.MISSING


def test_a_changed_step_and_its_dependents_are_stale(made):
    found = states(made, head_epochs="41")

    assert found["f"].state == State.COMPLETE
    assert found["scaled"].state == State.STALE
    assert "epochs: 41, found 40" in found["scaled"].detail
    assert found["judged"].state == found["report"].state == State.STALE


def test_states_write_nothing(made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    states(made, head_epochs="41")

    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_another_report_of_the_same_steps_makes_only_itself(place):
    text = TINY.replace("figures: [gain-by-corruption]", "figures: [reliability]")
    report = run_tiny(FeatureStore(str(place / "store")), place / "data", text)

    assert report.n_made == 1


# What is refused before anything is made


def refused_run(tmp_path, text):
    write_tiny_data(tmp_path / "data")
    store = FeatureStore(str(tmp_path / "store"))
    with pytest.raises(RecipeError) as caught:
        run_tiny(store, tmp_path / "data", text)
    assert not (tmp_path / "store").exists()
    return str(caught.value)


def test_a_missing_data_set_is_refused(tmp_path):
    found = refused_run(tmp_path, TINY.replace("dataset: tiny, model: f", "dataset: tin, model: f"))

    assert found.startswith("tiny.yaml:13: step clean: tin: no such data set")


def test_a_missing_network_is_refused(tmp_path):
    found = refused_run(tmp_path, TINY.replace("preset: quick,", "preset: quick, network: resnet,"))

    assert found.startswith("tiny.yaml:11: step f: unknown network 'resnet'")


def test_an_epoch_that_is_not_kept(tmp_path):
    text = """\
recipe: kept
steps:
  f: {stage: train-sensing, dataset: tiny, preset: quick, epochs: 5, keep_every: 2}
  then: {stage: snapshot, model: f, epoch: 4}
"""
    assert refused_run(tmp_path, text).startswith("tiny.yaml:4: step then: epoch 4 is not kept")


def test_a_corrupted_set_that_was_written_otherwise(place):
    found = states(place, TINY.replace("[contrast, gaussian_noise]", "[contrast]"))["hard"]

    assert found.state == State.MISSING
    assert "holds data of another plan" in found.detail


# Corrupted sets and snapshots

AS_IT_IS = TINY.replace(", corruptions: [contrast, gaussian_noise]", "")


def test_large_images_are_corrupted_where_the_recipe_accepts_that_they_are_shrunk(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
        (tmp_path / "tiny").mkdir(exist_ok=True)
        np.savez(tmp_path / "tiny" / f"{split}.npz", images=images, labels=np.arange(20) % 10)
    store = FeatureStore(str(tmp_path / "store"))
    with pytest.raises(RecipeError, match=r"step hard: tiny test: stored images are 64x64"):
        tiny_run(store, tmp_path, TINY).run(None)
    assert not (tmp_path / "store").exists()
    accepted = TINY.replace("stage: corrupt,", "stage: corrupt, image_size: 32,")
    hard = next(iter(tiny_run(store, tmp_path, accepted).statuses))
    assert hard.state == "missing"
    assert hard.problem is None


def test_an_imported_corrupted_set_is_used_unchanged(place):
    for name in ("plan.json", "receipts"):
        path = place / "data" / "tiny-c" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = states(place, AS_IT_IS)

    assert found["hard"].state == State.COMPLETE
    assert found["judged"].state == State.COMPLETE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("to: cifar10c", "to: cifar10c, limit: 9", "limit is 9, but the set 'cifar10c' exists"),
        (
            "to: cifar10c",
            "to: cifar10c, split: train",
            "split is train, but the set 'cifar10c' exists",
        ),
        ("to: cifar10c", "to: cifar10c, seed: 1", "seed is 1, but the set 'cifar10c' exists"),
        (
            "to: cifar10c",
            "to: cifar10c, corruptions: [fog, snow]",
            "corruptions is [fog, snow], but the set 'cifar10c' exists and is used unchanged: omit",
        ),
    ],
)
def test_options_that_do_not_apply_to_an_unchanged_set_are_refused(tmp_path, old, new, message):
    text = AS_IT_IS.replace("$corrupted", "cifar10c").replace("  corrupted: tiny-c\n", "")
    found = refused_run(tmp_path, text.replace(old, new))

    assert found.startswith("tiny.yaml:9: step hard: ")
    assert message in found
    assert "select a part of this one with 'corruptions' and 'limit' of extract" in found


def test_some_corruptions_of_a_set_can_be_extracted(made):
    options = {"corruptions": ("gaussian_noise",)}
    some = SourceSpec("tiny-c", "test", str(made / "data"), **options).open()
    whole = SourceSpec("tiny-c", "test", str(made / "data")).open()

    assert some.name == "tiny-c-gaussian_noise"
    assert np.array_equal(some.read(0, 300).images, whole.read(300, 600).images)


ALONE = """\
recipe: alone
steps:
  f: {stage: train-sensing, dataset: tiny, preset: quick,\
"""
SNAPSHOTS = """\
recipe: snapshots
parameters: {keep_every: 2}
steps:
  training: {stage: train-sensing, dataset: tiny, preset: quick, epochs: 3, keep_every: $keep_every}
  f:
    stage: snapshot
    each: {epoch: {from: 1, to: 3, by: $keep_every}}
    model: training
    epoch: $epoch
  clean: {stage: extract, dataset: tiny, model: f}
"""


def test_a_training_leaves_its_snapshots_to_the_steps_that_name_them(tmp_path):
    write_tiny_data(tmp_path / "data")
    report = run_tiny(FeatureStore(str(tmp_path / "store")), tmp_path / "data", SNAPSHOTS)

    assert [status.instance.label for status in report.statuses] == [
        "training",
        "f[epoch=1]",
        "f[epoch=3]",
        "clean[epoch=1]",
        "clean[epoch=3]",
    ]
    assert all(status.is_complete for status in report.statuses)


def test_a_model_without_its_snapshots_is_trained_again_under_another_name(tmp_path):
    write_tiny_data(tmp_path / "data")
    store = FeatureStore(str(tmp_path / "store"))
    run_tiny(store, tmp_path / "data", f"{ALONE} epochs: 3}}")
    run_tiny(store, tmp_path / "data", SNAPSHOTS)
    names = [model.name for model in store.artifacts("model")]

    assert len(names) == 4
    assert names[0] + "-every-2" == names[1]


def without(place: Path, pattern: str) -> None:
    (lost,) = (place / "store" / "models").glob(pattern)
    shutil.rmtree(lost)


def test_a_snapshot_that_was_lost_is_made_again_under_the_next_free_name(tmp_path):
    write_tiny_data(tmp_path / "data")
    store = FeatureStore(str(tmp_path / "store"))
    run_tiny(store, tmp_path / "data", SNAPSHOTS)
    without(tmp_path, "*-every-2-epoch-003")
    found = states(tmp_path, SNAPSHOTS)
    report = run_tiny(store, tmp_path / "data", SNAPSHOTS)

    assert found["training"].state == State.MISSING
    assert found["training"].detail.endswith("-every-2-again-1")
    assert all(status.is_complete for status in report.statuses)
    assert {status.state for status in states(tmp_path, SNAPSHOTS).values()} == {State.COMPLETE}


# What is damaged


@pytest.mark.parametrize(
    ("step", "file", "content", "message"),
    [
        ("f", "model.json", b"", "model.json cannot be read"),
        ("f", "model.json", b"{}", "model.json cannot be read"),
        ("f", "plan.json", b"{", "plan.json cannot be read"),
        ("f", "weights.safetensors", b"short", "weights.safetensors has 5 bytes, expected "),
        ("f", "weights.safetensors", None, "weights.safetensors is missing, expected "),
        ("scaled", "head.json", b"{", "head.json cannot be read"),
        ("judged", "average.parquet", b"", "average.parquet has 0 bytes, expected "),
        ("report", "report.html", None, "report.html is missing, expected "),
    ],
)
def test_a_damaged_set_is_not_complete(place, step, file, content, message):
    made = states(place)[step].job
    path = place / "store" / made.place / file
    path.write_bytes(content) if content is not None else path.unlink()
    found = states(place)[step]

    assert found.state == State.MISSING
    assert message in found.detail
    assert f"`intro-pipe verify` checks every file; remove {path.parent}" in found.detail


def test_an_altered_plan_is_not_accepted(place):
    head = place / "store" / "heads" / states(place)["scaled"].detail
    (head / "plan.json").write_bytes(readable_json({"stage": "other"}))

    assert "was made with another plan" in states(place)["scaled"].detail


def test_a_limit_takes_the_first_rows(tmp_path):
    write_npz_set(tmp_path / "data" / "tiny", 300, 60)
    store = FeatureStore(str(tmp_path / "store"))
    run_tiny(store, tmp_path / "data", f"{ALONE} epochs: 1, limit: 50}}")

    assert store.artifacts("model")[0].card()["n_train"] == 50


# Active learning

LEARNING = """\
recipe: asking
title: Who asks better
about: A test.
steps:
  hard: {stage: corrupt, dataset: tiny, to: tiny-c, corruptions: [contrast, gaussian_noise]}
  runs:
    stage: active-learn
    dataset: tiny
    images: hard
    network: cnn2
    strategies: [margin]
    seeds: [0, 1]
    rounds: 2
    query: 20
    start: 20
    epochs: 2
    layers: [6]
report:
  results: [runs]
  table: {paper: table-1, metrics: [accuracy]}
  figures: [learning-curves]
"""


def test_active_learning_becomes_a_page_on_both_tests(place):
    done = run_tiny(FeatureStore(str(place / "store")), place / "data", LEARNING)
    report = done.statuses[-1].job.output

    assert {status.state for status in done.statuses} == {State.COMPLETE}
    assert [shown.split(" is ")[0] for shown in report.card()["shows"]] == [
        f"On {test} images {predictor}"
        for test in ("clean", "gaussian noise")
        for predictor in ("f beside H", "H")
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("query: 20", "query: 2000", "tiny.yaml:6: step runs: the pool has 300 labelled images"),
        ("[margin]", "[bagde]", "expected one of random"),
        ("query: 20", "ask: 20", "step runs: ask: a recipe cannot choose where to write"),
    ],
)
def test_active_learning_that_cannot_be_is_refused_before_anything_is_made(
    tmp_path, old, new, message
):
    text = LEARNING.replace("tiny-c", "none-yet").replace(old, new)

    assert message in refused_run(tmp_path, text)


def test_ensembles_of_a_recipe_are_those_that_are_judged(place):
    text = TINY.replace(
        "    stage: evaluate\n", "    stage: uncertainty\n    ensembles: {both: f+temperature}\n"
    )
    found = states(place, text)
    judged = next(status for label, status in found.items() if label.startswith("judged"))

    assert judged.job.plan["stage"]["params"]["ensembles"] == {"both": "f+temperature"}
