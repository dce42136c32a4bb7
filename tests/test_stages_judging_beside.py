"""Predictors of two feature sets of the same samples equal slow loops over their stored rows."""

import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cells import cells, small_head
from made import make_in

from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.evaluation.recognition import query
from stages.introspection.predictors import sensing_probabilities
from stages.judging.beside import matched_rows
from stages.judging.judged_result import Evaluation, open_evaluation
from stages.judging.judgement import Judgement, OtherRows, Predictor, judged
from stages.metrics.bootstrap import Resampling, interval
from stages.metrics.calibration import METRICS, summary
from stages.metrics.sums import sums
from stages.stale import why_stale
from store.catalog import FeatureStore
from store.featureset import FeatureSet

F, G = (Predictor(label, 0, sensing_probabilities) for label in ("f", "g"))
CELLS = ("corruption", "severity")
SHUFFLED = tuple(np.random.default_rng(3).permutation(84))


def two_sets(store: FeatureStore, *, has_cells: bool = True) -> tuple[FeatureSet, FeatureSet]:
    """A set, and noisy features of the same samples in another order, in larger shards."""
    ours = cells(store, has_cells=has_cells)
    other = cells(store, "noisy", has_cells=has_cells, shard_rows=32, order=SHUFFLED, noise=0.7)
    return ours, other


def judged_beside(ours: FeatureSet, other: FeatureSet, resampling: Resampling) -> Judgement:
    by = CELLS if "corruption" in dict(ours.schema.columns) else ()
    beside = OtherRows(other, (G,), matched_rows(ours, other, by))
    return judged(ours, (F,), resampling, beside=beside)


def slow_resamples(
    found: FeatureSet, images: dict[str, int], resampling: Resampling
) -> dict[str, np.ndarray[Any, Any]]:
    """Means over cells of f's metrics in each resample, from repeated rows."""
    samples = found.samples()
    p = sensing_probabilities(found.read("features"), found.read("logits"))
    labels = samples["label"].to_numpy()
    image = np.array([images[name] for name in samples["sample_id"]])
    weights = resampling.weights(np.arange(image.max() + 1))
    by = list(CELLS) if "corruption" in samples else np.zeros(len(samples))
    values = []
    for _, cell in samples.groupby(by):
        for resample in range(resampling.n_resamples):
            rows = np.repeat(cell.index, weights[image[cell.index], resample])
            values.append({"resample": resample, **summary(sums(p[rows], labels[rows]))})
    means = pd.DataFrame(values).groupby("resample").mean()
    return {name: means[name].to_numpy() for name in means}


@pytest.mark.parametrize("has_cells", [True, False])
def test_differences_equal_resampling_the_stored_rows(store: FeatureStore, has_cells: bool) -> None:
    ours, other = two_sets(store, has_cells=has_cells)
    names = list(ours.samples()["sample_id"])
    numbers = [int(name[-5:]) if has_cells else row for row, name in enumerate(names)]
    images, resampling = dict(zip(names, numbers, strict=True)), Resampling(100, seed=1)
    table = judged_beside(ours, other, resampling).average.set_index(["predictor", "metric"])
    of_f, of_g = (slow_resamples(found, images, resampling) for found in (ours, other))
    for metric in (name for name in METRICS if name != "ece_adaptive"):
        row = table.loc[("g", metric)]
        assert row["gain"] == pytest.approx(row["mean"] - table.loc[("f", metric), "mean"])
        expected = interval(row["gain"], of_g[metric] - of_f[metric])
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("has_cells", [True, False])
def test_cells_equal_a_query_of_each_set(store: FeatureStore, has_cells: bool) -> None:
    ours, other = two_sets(store, has_cells=has_cells)
    by_group = judged_beside(ours, other, Resampling(0)).by_group
    by = CELLS if has_cells else ()
    asked = [query(each, by=by, metrics=tuple(METRICS)).frame() for each in (ours, other)]
    expected = pd.concat(asked, ignore_index=True)
    found = by_group.drop(columns=["predictor", "seed"])
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    assert by_group["predictor"].unique().tolist() == ["f", "g"]


def test_rows_are_matched_by_sample(store: FeatureStore) -> None:
    ours, other = two_sets(store)
    rows = matched_rows(ours, other, CELLS)
    assert rows.tolist() == list(SHUFFLED)
    assert matched_rows(ours, ours, ()).tolist() == list(range(84))


def beside(store: FeatureStore, ours: FeatureSet, **options: Any) -> Evaluation:
    stage = Evaluate(features=ours.name, **{"heads": (), "resamples": 100, **options})
    return open_evaluation(make_in(store, stage).output)


@pytest.mark.parametrize("has_cells", [True, False])
def test_the_same_extraction_differs_by_nothing(store: FeatureStore, has_cells: bool) -> None:
    ours = cells(store, has_cells=has_cells)
    twin = cells(store, "twin", has_cells=has_cells, shard_rows=25, order=SHUFFLED)
    average = beside(store, ours, beside=twin.name, beside_label="twin").average
    gains = average[(average["predictor"] == "twin") & (average["metric"] == "accuracy")]
    gains = gains[["gain", "gain_low", "gain_high"]].to_numpy()
    assert gains.ravel() == pytest.approx([0, 0, 0], abs=1e-14)  # sums have another order


def test_samples_that_failed_in_one_set_are_left_out_in_both(store: FeatureStore) -> None:
    ours = cells(store, unread=(5, 40))
    twin = cells(store, "twin", shard_rows=25, order=SHUFFLED, unread=(5, 17, 76))
    result = beside(store, ours, beside=twin.name, beside_label="twin")

    (row,) = (
        result.average[result.average["metric"] == "accuracy"].query("predictor == 'twin'").index
    )
    gains = result.average.loc[row, ["gain", "gain_low", "gain_high"]].to_numpy(float)
    assert gains == pytest.approx(0, abs=1e-14)
    assert result.card.left_out_rows == {"f": 4, "twin": 4}
    rows = result.by_group.pivot_table("n_rows", CELLS, "predictor")
    assert rows["f"].tolist() == rows["twin"].tolist()
    assert rows["f"].sum() == 80


def test_a_cell_that_failed_in_one_set_is_in_no_mean(store: FeatureStore) -> None:
    ours = cells(store, n_rows=36)
    twin = cells(store, "twin", n_rows=36, unread=range(0, 36, 6))  # all of fog, severity 1
    result = beside(store, ours, beside=twin.name, beside_label="twin")

    gains = result.average.loc[result.average["predictor"] == "twin", "gain"]
    assert gains.to_numpy() == pytest.approx(0, abs=1e-14)
    assert result.card.cells.count == 5
    assert "mean over 5 groups" in result.card.title
    alone = open_evaluation(
        make_in(store, Evaluate(features=twin.name, heads=(), resamples=0)).output
    )
    assert alone.card.cells.count == 5


def test_a_result_says_which_predictors_read_the_other_set(store: FeatureStore) -> None:
    ours, other = two_sets(store)
    small_head(store, ours)
    small_head(store, other, "h2")
    heads = {"heads": {"H": "h"}, "beside_heads": {"H2": "h2"}}
    result = beside(store, ours, beside=other.name, **heads)
    card, label = result.card, "f on noisy-test@net"
    assert list(card.seeds) == ["f", "H", label, "H2"]
    assert card.others == ("H", label, "H2")
    assert [card.features_of(each) for each in card.seeds] == [ours.name] * 2 + [other.name] * 2
    assert card.left_out_rows[label] == 1
    plan = result.artifact.plan()
    assert why_stale(store, plan) == ""
    shutil.rmtree(other.shard_set.storage.location)
    assert why_stale(store, plan) == f"features {other.name} were deleted"


def test_plans_without_a_set_beside_are_those_of_before(store: FeatureStore) -> None:
    ours = cells(store)
    plan = beside(store, ours).artifact.plan()
    assert plan["inputs"] == {"features": ours.plan, "heads": []}
    assert plan["stage"]["params"].keys() == {"n_bins", "bootstrap"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"n_rows": 78},
            r"expected the 84 samples .* found 78 rows, \d+ of them other",
        ),
        ({"corruptions": ("fog", "frost")}, r"84 rows, 42 of them .* 'frost/1/00000': extract"),
        ({"is_all_wrong": True}, "by sample_id, label, corruption, severity; found 84 rows, "),
        ({"has_cells": False}, r"other-test@net-.* has no column 'corruption'"),
        (
            {"net": {"n_classes": 4}},
            "expected networks with the same classes, found 4 of 'net' and",
        ),
    ],
)
def test_other_images_are_refused_before_anything_is_written(
    store: FeatureStore, options: dict[str, Any], reason: str
) -> None:
    ours, other = cells(store), cells(store, "other", **options)
    with pytest.raises(InputError, match=reason):
        beside(store, ours, beside=other.name)
    assert store.artifacts("result") == ()


def test_labels_of_both_sets_are_distinct(store: FeatureStore) -> None:
    ours, other = two_sets(store)
    small_head(store, ours)
    with pytest.raises(InputError, match=r"unique label for each, .* found 'H'"):
        beside(store, ours, heads={"H": "h"}, beside=other.name, beside_label="H")


def test_sets_of_one_name_are_told_apart_by_their_full_names(store: FeatureStore) -> None:
    ours = cells(store)
    other = cells(store, shard_rows=32, net={"precision": "bf16"})
    card = beside(store, ours, beside=other.name).card
    assert card.others == (f"f on {other.name}",)
    assert card.title.startswith(f"shapes-test@net beside {other.name}, ")


def test_heads_of_no_set_are_refused() -> None:
    with pytest.raises(ValueError, match="need --beside: add it"):
        Evaluate(features="a", beside_heads=["h"])
