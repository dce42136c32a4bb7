"""Labels that are flipped on purpose, as inputs of a training and of a curation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import clouds
from conftest import Refusal
from made import make_in
from pydantic import ValidationError
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score
from small_data import write_npz_set

from stages.curation.curate import Curate
from stages.curation.curation_result import RANKED, CurationCard
from stages.data.flips import Flips
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.recipes.run import Reproduce
from stages.reflection.extract import Extract
from stages.sensing.labelled import read_labelled
from stages.sensing.train_sensing import TrainSensing
from stages.sensing.trained import TrainedModel
from store.catalog import FeatureStore

LABELS = np.random.default_rng(0).integers(0, 5, 2000)


@pytest.mark.parametrize("kind", ["symmetric", "pairwise"])
def test_a_share_of_the_rows_is_flipped_to_other_classes(kind: str) -> None:
    found = Flips(kind, 0.2, seed=3).flipped(LABELS, 5)
    moves = ((found - LABELS) % 5)[found != LABELS]

    assert len(moves) == 400
    if kind == "pairwise":
        assert set(moves) == {1}
    else:
        assert np.bincount(moves, minlength=5)[1:].min() > 70  # 100 of each are expected
    assert (found == Flips(kind, 0.2, seed=3).flipped(LABELS, 5)).all()
    assert (found != Flips(kind, 0.2, seed=4).flipped(LABELS, 5)).any()


def test_rows_without_a_label_stay_without_and_change_no_other_flip() -> None:
    some = np.where(np.arange(2000) % 3 == 0, -1, LABELS)
    found, all_found = (Flips("symmetric", 0.3).flipped(each, 5) for each in (some, LABELS))

    assert (found[some < 0] == -1).all()
    assert (found[some >= 0] == all_found[some >= 0]).all()


SHAPELESS = ("pairwise", "next:0.2", "pairwise:x", "symmetric:0.2:1:2")
OUTSIDE = ("pairwise:0", "pairwise:1", "pairwise:nan", "pairwise:0.2:-1")


@pytest.mark.parametrize("text", [*SHAPELESS, *OUTSIDE])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected symmetric:SHARE or pairwise:SHARE"):
        Flips.of(text)
    with pytest.raises((ValidationError, InputError), match="expected symmetric:SHARE"):
        Curate(features="x", flip_labels=text)


def test_one_class_cannot_be_flipped() -> None:
    with pytest.raises(InputError, match="expected two or more classes, found 1"):
        Flips("pairwise", 0.5).flipped(np.zeros(4, np.int64), 1)


def test_flips_that_flip_no_label_are_refused() -> None:
    labels = np.array([0, 1, -1, 2])
    with pytest.raises(InputError, match="expected to flip one label or more, found none of 3"):
        Flips("pairwise", 0.01).flipped(labels, 3)


def curated(store: FeatureStore, **options: Any) -> Any:
    stage = Curate(features="clouds-train@net", top=0, space="none", **options)
    return make_in(store, stage).output


def test_a_curation_says_how_well_it_finds_flipped_labels(store: FeatureStore) -> None:
    truth = clouds(store).samples()["label"].to_numpy()
    given = Flips("pairwise", 0.2).flipped(truth, 3)

    result = curated(store, flip_labels="pairwise:.2")

    rows = result.read_frame(RANKED).set_index("row").sort_index()
    assert rows["label"].tolist() == given.tolist()
    is_flipped = given != truth
    assert rows["is_flipped"].tolist() == is_flipped.tolist()
    found, kept = CurationCard.of(result).found, np.arange(300) != 5  # the failed row
    assert found is not None
    flags = rows["is_label_issue"].to_numpy()[kept]
    expected = precision_recall_fscore_support(is_flipped[kept], flags, average="binary")[:3]
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected)
    assert found.flipped == is_flipped[kept].sum()
    for name, sign in (("self_confidence", -1), ("el2n", 1)):
        area = roc_auc_score(is_flipped[kept], sign * rows[name][kept])
        assert found.auroc[name] == pytest.approx(area)
    assert found.auroc["self_confidence"] > 0.8


def test_a_curation_without_flips_keeps_its_plan(store: FeatureStore) -> None:
    clouds(store)
    result = curated(store)

    assert "flips" not in result.plan()["stage"]["params"]
    assert "is_flipped" not in result.read_frame(RANKED)
    assert CurationCard.of(result).found is None


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_npz_set(tmp_path / "digits", 60, 10))


def test_a_training_reads_the_chosen_rows_and_the_flipped_labels(data: str) -> None:
    source = SourceSpec(data, "train", "").open()
    everything = read_labelled(source)
    ids = frozenset(source.read(0, 60).columns["sample_id"][10:25].tolist())

    chosen = read_labelled(source, samples=ids)
    flipped = chosen.flipped(Flips("pairwise", 0.5), source)

    assert chosen.rows.tolist() == list(range(10, 25))
    assert (chosen.images == everything.images[10:25]).all()
    assert chosen.n_left_out == 0
    labels = Flips("pairwise", 0.5).flipped(everything.labels.numpy(), 10)
    assert flipped.labels.tolist() == labels[10:25].tolist() != chosen.labels.tolist()
    with pytest.raises(
        InputError, match="--samples: expected 16 samples of digits-train, found 15"
    ):
        read_labelled(source, samples=ids | {"ghost"})


def test_plans_name_the_flips_and_the_samples_only_if_there_are_any(
    store: FeatureStore, data: str, tmp_path: Path
) -> None:
    ids = SourceSpec(data, "train", "").open().read(0, 60).columns["sample_id"][:40]
    (tmp_path / "kept.csv").write_text("\n".join(["row,sample_id", *(f"0,{i}" for i in ids)]))
    changes = {"samples": str(tmp_path / "kept.csv"), "flip_labels": "symmetric:0.5"}

    def made(**options: Any) -> Any:
        return make_in(
            store, TrainSensing(dataset=data, preset="quick", epochs=1, **options)
        ).output

    plain, changed = made(name="plain"), made(name="changed", **changes)

    plans = [each.plan() for each in (plain, changed)]
    assert "flip_labels" not in plans[0]["stage"]["params"]
    assert "samples" not in plans[0]["inputs"]
    assert plans[1]["stage"]["params"]["flip_labels"] == "symmetric:0.5:0"
    assert len(plans[1]["inputs"]["samples"]) == 64
    assert [TrainedModel.of(each).n_train for each in (plain, changed)] == [60, 40]


def test_a_list_without_samples_is_refused(data: str, tmp_path: Path, refused: Refusal) -> None:
    (tmp_path / "none.csv").write_text("sample_id\n")
    words = ("train-sensing", "--dataset", data, "--samples")

    assert "expected at least one sample, found none" in refused(*words, "none.csv")
    assert "ghost.csv: cannot be read" in refused(*words, "ghost.csv")


def test_the_recipe_trains_on_flipped_labels_and_finds_them(store: FeatureStore, data: str) -> None:
    changes = ("networks=[cnn2]", "preset=quick", "epochs=2", "flips=[pairwise:0.2]")
    make_in(store, Reproduce(recipe="label-errors", changes=(f"dataset={data}", *changes)))

    (report,) = store.artifacts("report")
    text = report.read("report.md").decode()
    lines = [line for line in text.splitlines() if "pairwise:0.2:0" in line]
    assert any("5 refits, seed 0" in line for line in lines)
    assert any("stored" in line for line in lines)
    (model,) = store.artifacts("model")
    (features,) = store.feature_sets()
    with pytest.raises(InputError, match="judge the same ones with --flip-labels pairwise"):
        make_in(store, Curate(features=features.name, top=0))
    assert TrainedModel.of(model).recipe.flip_labels == "pairwise:0.2:0"
    some = Extract(dataset=data, split="train", model=model.name, limit=20)
    few = make_in(store, some).output.name
    with pytest.raises(InputError, match="expected the rows on whose flipped labels"):
        make_in(store, Curate(features=few, top=0, flip_labels="pairwise:0.2"))
