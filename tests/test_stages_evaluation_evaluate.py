"""Results: what is stored, when it is computed, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import UNREAD, cells, small_head
from made import CPU, make_in

from pipeline.journal import Journal
from pipeline.make import make
from pipeline.stage import Stage
from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.head import predict_probabilities
from stages.introspection.predictors import open_head
from stages.judging.judged_result import Evaluation, open_evaluation
from stages.metrics.calibration import METRICS
from store.catalog import FeatureStore
from store.errors import NotFoundError
from store.featureset import FeatureSet


def journal_of(store: FeatureStore) -> Journal:
    return Journal.of(store.location, ["evaluate"])


def judge(
    store: FeatureStore, found: FeatureSet, n_resamples: int = 100, **heads: str
) -> Evaluation:
    """Evaluate heads given as ``LABEL=name``."""
    stage = Evaluate(features=found.name, heads=heads, resamples=n_resamples)
    return open_evaluation(make_in(store, stage).output)


def judge_with(store: FeatureStore, stage: Evaluate, journal: Journal) -> Evaluation:
    return open_evaluation(make(stage, Workspace(store, execution=CPU), journal).output)


def test_a_head_is_judged_by_its_own_probabilities_seed_by_seed(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found, seeds=(0, 7))
    by_group = judge(store, found, H="h").by_group
    rows = np.delete(np.arange(found.n_rows), UNREAD)
    labels = found.samples()["label"].to_numpy()[rows]
    for seed in (0, 7):
        probabilities = predict_probabilities(
            open_head(store.artifact("head", "h"), seed),
            found.read("features")[rows],
            found.read("logits")[rows],
        )
        mine = by_group[(by_group["predictor"] == "H") & (by_group["seed"] == seed)]
        weighted = (mine["accuracy"] * mine["n_rows"]).sum() / mine["n_rows"].sum()
        assert weighted == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    assert by_group["seed"][by_group["predictor"] == "f"].unique().tolist() == [0]


def test_heads_of_every_kind_are_compared_with_f(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    make_in(store, FitTemperature(features=found.name, name="t"))
    result = judge(store, found, H="h", T="t")
    assert result.average["predictor"].unique().tolist() == ["f", "H", "T"]
    gain = result.average.set_index(["predictor", "metric"]).loc[("T", "accuracy")]
    assert gain[["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    assert result.card.contenders["T"].kind == "temperature"
    assert result.card.contenders["H"].predictor.spec.layers == (8,)


def test_f_is_judged_alone_where_nothing_contends(store: FeatureStore) -> None:
    result = judge(store, cells(store))
    assert result.average["metric"].tolist() == list(METRICS)
    assert result.card.seeds == {"f": (0,)}


def test_present_classes_are_refused_where_all_occur(store: FeatureStore) -> None:
    stage = Evaluate(features=cells(store).name, heads={"none": "none"}, present_classes=True)
    with pytest.raises(InputError, match="classes occur among its labels: omit --present-classes"):
        make_in(store, stage)
    assert store.artifacts("result") == ()


def test_columns_in_place_of_corruptions_define_the_cells(store: FeatureStore) -> None:
    found = cells(store)
    plain = Evaluate(features=found.name, heads={}, resamples=0)
    by_class = plain.model_copy(update={"by": ("label",)})
    result = open_evaluation(make_in(store, by_class).output)
    samples = found.samples().drop(index=UNREAD)
    correct = found.read("logits").argmax(axis=1)[samples.index] == samples["label"]
    accuracy = correct.groupby(samples["label"]).mean()

    assert result.by_group["accuracy"].tolist() == pytest.approx(accuracy.tolist())
    assert "mean over 3 groups of label" in result.card.title
    assert result.card.statistics["mean"].startswith("plain mean over cells (label) of ")
    assert "by" not in make_in(store, plain).output.plan()["stage"]["params"]


def test_class_is_the_label_by_name(store: FeatureStore) -> None:
    found = cells(store, source={"class_names": ["cat", "dog", "ant"]})
    stage = Evaluate(features=found.name, heads={}, resamples=0, by=("class",))
    result = make_in(store, stage)
    assert make_in(store, stage.model_copy(update={"by": ("label",)})).name == result.name
    assert open_evaluation(result.output).by_group["class"].tolist() == ["cat", "dog", "ant"]


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        (("lable",), "unknown column 'lable' in --by; there are: sample_id"),
        (("label", "label"), "--by label,label names a column twice"),
    ],
)
def test_a_column_that_cannot_define_cells_is_refused(
    store: FeatureStore, by: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        make_in(store, Evaluate(features=cells(store).name, heads={}, by=by))


def test_a_result_keeps_its_tables_and_its_card_in_the_store(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    result = judge(store, found, H="h")
    place = Path(result.artifact.storage.location)
    assert place.parent == Path(store.location, "results")
    assert place.name.startswith("shapes-test@net-")
    pd.testing.assert_frame_equal(pd.read_parquet(place / "by-group.parquet"), result.by_group)
    pd.testing.assert_frame_equal(pd.read_parquet(place / "average.parquet"), result.average)
    pd.testing.assert_frame_equal(pd.read_parquet(place / "bins.parquet"), result.bins)
    card = json.loads((place / "result.json").read_text())
    assert card["definitions"].keys() == METRICS.keys()
    assert card["versions"].keys() == {"intro-pipe", "python", "numpy", "torch"}
    assert card["left_out_rows"] == {"f": 1, "H": 1}
    assert (card["n_bins"], card["n_resamples"], card["rows"]) == (10, 100, 84)
    assert "mean over 6 groups of corruption and severity; 1 row left out" in card["title"]


def test_an_existing_result_is_read_and_not_computed(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    first = judge(store, found, H="h")
    card = Path(first.artifact.storage.location, "result.json")
    before, again = card.stat().st_mtime_ns, journal_of(store)
    stage = Evaluate(features=found.name, heads={"H": "h"}, resamples=100)
    result = judge_with(store, stage, again)
    assert card.stat().st_mtime_ns == before
    assert not again.is_begun()
    pd.testing.assert_frame_equal(result.average, first.average)


def test_a_result_that_was_stopped_before_its_card_is_made_again(store: FeatureStore) -> None:
    found = cells(store)
    first = judge(store, found)
    Path(first.artifact.storage.location, "result.json").unlink()
    result = judge(store, found)
    pd.testing.assert_frame_equal(result.by_group, first.by_group)


def test_the_place_of_a_result_depends_on_what_determines_it(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    small_head(store, found, "h2", seeds=(1,))

    def name(n_resamples: int = 10, seed: int = 0, **heads: str) -> str:
        stage = Evaluate(features=found.name, heads=heads, resamples=n_resamples, seed=seed)
        return stage.job(Workspace(store)).output_name

    names = [
        name(),
        name(H="h"),
        name(H="h2"),
        name(G="h"),
        name(H="h", n_resamples=11),
        name(H="h", seed=1),
        name(H="h", n_resamples=0),
    ]
    assert len(set(names)) == len(names)
    assert name(H="h", n_resamples=0, seed=5) == names[-1]
    assert judge(store, found, n_resamples=10, H="h").artifact.name == names[1]


def test_a_head_that_was_replaced_gives_another_result(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    first = judge(store, found, H="h")
    head = store.artifact("head", "h")
    card, plan = head.card(), head.plan()
    files = {key: head.read(key) for key in card.pop("files")}
    small_head(store, found, "other", seeds=(5,))
    other = store.artifact("head", "other")
    head.storage.remove(head.card_key)  # what is finished stays as it is
    head.write({key: other.read(key) for key in files}, card, plan=plan)
    second = judge(store, found, H="h")
    assert head.plan() == plan
    assert second.artifact.name != first.artifact.name
    assert not second.by_group.equals(first.by_group)


def test_a_set_without_a_label_is_refused_before_anything_is_written(store: FeatureStore) -> None:
    journal, found = journal_of(store), cells(store, has_labels=False)
    with pytest.raises(InputError, match="expected labelled rows, found none among 84"):
        judge_with(store, Evaluate(features=found.name, heads=()), journal)
    assert not journal.is_begun()
    assert not Path(store.location, "results").exists()


def test_a_label_that_cannot_be_printed_is_refused(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    with pytest.raises(InputError, match=r"printable characters, found 'H\\x1b'"):
        judge(store, found, **{"H\x1b": "h"})


def test_a_missing_result_cannot_be_opened(store: FeatureStore) -> None:
    job = Evaluate(features=cells(store).name, heads=()).job(Workspace(store))
    with pytest.raises(NotFoundError, match="does not exist"):
        open_evaluation(job.output)


@pytest.mark.parametrize("label", ["f", "", " "])
def test_a_used_or_empty_label_is_refused(store: FeatureStore, label: str) -> None:
    found = cells(store)
    small_head(store, found)
    with pytest.raises(InputError, match=f"found '{label}': name heads as LABEL=NAME"):
        judge(store, found, **{label: "h"})


def test_two_contenders_of_one_label_are_refused_before_anything_is_written(
    store: FeatureStore,
) -> None:
    found = cells(store)
    small_head(store, found)
    journal = journal_of(store)
    twice = Evaluate(features=found.name, heads=["H=h", "H=h"])
    with pytest.raises(InputError, match="found 'H'"):
        judge_with(store, twice, journal)
    assert not journal.is_begun()
    assert not Path(store.location, "results").exists()


def test_a_head_of_another_network_is_refused(store: FeatureStore) -> None:
    small_head(store, cells(store))
    other = cells(store, "others", weights="w2")
    with pytest.raises(InputError, match="'net'"):
        judge(store, other, H="h")


def test_a_missing_head_is_refused(store: FeatureStore) -> None:
    with pytest.raises(NotFoundError, match="head 'none'"):
        judge(store, cells(store), H="none")


@pytest.mark.parametrize(
    ("heads", "labels"),
    [(None, ["f", "H"]), ((), ["f"]), (("none",), ["f"]), ({"T": "h"}, ["f", "T"])],
)
def test_heads_are_the_only_one_none_or_those_that_are_named(
    store: FeatureStore, heads: object, labels: list[str]
) -> None:
    found = cells(store)
    small_head(store, found)
    stage = Evaluate(features=found.name, heads=heads, resamples=0)
    card = make_in(store, stage).output.card()
    assert list(card["seeds"]) == labels
    assert Evaluate(**{k: v for k, v in stage.to_json().items() if k != "stage"}) == stage


@pytest.mark.parametrize(
    ("fit", "label"),
    [(FitTemperature, "T"), (FitNeighbours, "kNN")],
)
def test_a_lone_head_that_is_no_network_has_a_label_of_its_own(
    store: FeatureStore, fit: type[Stage], label: str
) -> None:
    found = cells(store)
    make_in(store, fit(features=found.name))
    card = make_in(store, Evaluate(features=found.name, resamples=0)).output.card()
    assert list(card["seeds"]) == ["f", label]
