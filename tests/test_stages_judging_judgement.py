"""Metrics by cell and resample equal slow loops over rows in memory."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from cells import UNREAD, cells

from stages.errors import InputError
from stages.evaluation.evaluate import VERSION
from stages.evaluation.recognition import query
from stages.introspection.predictors import sensing_probabilities
from stages.judging.judgement import Judgement, Predictor, images_of, judged
from stages.metrics.bootstrap import Resampling, interval
from stages.metrics.calibration import METRICS, summary
from stages.metrics.sums import sums
from store.catalog import FeatureStore
from store.featureset import FeatureSet

F = Predictor("f", 0, sensing_probabilities)
RESAMPLED = [name for name in METRICS if name != "ece_adaptive"]


def sharper(temperature: float) -> Any:
    """f at another temperature."""

    def predict(features: Any, logits: Any) -> Any:
        return sensing_probabilities(features, logits / temperature)

    return predict


def lopsided(features: Any, logits: Any) -> Any:
    """f with a class that it believes in less."""
    return sensing_probabilities(features, logits * np.float32([1, 0.5, 1]))


PREDICTORS = (F, Predictor("G", 3, sharper(0.5)), Predictor("G", 4, lopsided))


def at(judgement: Judgement, label: str, metric: str) -> pd.Series:
    average = judgement.average.set_index(["predictor", "metric"])
    return average.loc[(label, metric)]


def bootstrap_row_by_row(
    found: FeatureSet, label: str, resampling: Resampling
) -> dict[str, np.ndarray[Any, Any]]:
    """Means over cells and seeds, evaluating the repeated rows of each resample."""
    samples, features, logits = found.samples(), found.read("features"), found.read("logits")
    labels = samples["label"].to_numpy()
    images = np.array([int(name.split("/")[2]) for name in samples["sample_id"]])
    weights = resampling.weights(np.arange(images.max() + 1))
    values = []
    for each in (each for each in PREDICTORS if each.label == label):
        p = each.predict(features, logits)
        for _, cell in samples.groupby(["corruption", "severity"]):
            for resample in range(resampling.n_resamples):
                rows = np.repeat(cell.index, weights[images[cell.index], resample])
                values.append({"resample": resample, **summary(sums(p[rows], labels[rows]))})
    means = pd.DataFrame(values).groupby("resample").mean()
    return {name: means[name].to_numpy() for name in means}


def test_intervals_equal_judging_every_resample_row_by_row(store: FeatureStore) -> None:
    found, resampling = cells(store), Resampling(100, seed=1)
    judgement = judged(found, PREDICTORS, resampling)
    of_f, of_g = (bootstrap_row_by_row(found, label, resampling) for label in ("f", "G"))
    for metric in RESAMPLED:
        row = at(judgement, "G", metric)
        gains = of_g[metric] - of_f[metric]
        expected = interval(row["mean"], of_g[metric])
        assert (row["low"], row["high"]) == pytest.approx(expected, rel=1e-9)
        expected = interval(row["gain"], gains)
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(expected, rel=1e-6)
        row = at(judgement, "f", metric)
        expected = interval(row["mean"], of_f[metric])
        assert (row["low"], row["high"]) == pytest.approx(expected, rel=1e-9)


def test_cells_of_f_equal_a_query(store: FeatureStore) -> None:
    found = cells(store)
    by_group = judged(found, PREDICTORS, Resampling(0)).by_group
    mine = by_group[by_group["predictor"] == "f"].drop(columns=["predictor", "seed"])
    asked = query(found, by=("corruption", "severity"), metrics=tuple(METRICS)).frame()
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), asked, rtol=1e-12)


def test_the_average_is_the_plain_mean_over_cells_then_over_seeds(store: FeatureStore) -> None:
    judgement = judged(cells(store), PREDICTORS, Resampling(0))
    by_seed = judgement.by_group.groupby(["predictor", "seed"])["ece"].mean()
    row = at(judgement, "G", "ece")
    assert row["mean"] == pytest.approx(by_seed["G"].mean())
    assert row["std"] == pytest.approx(np.std(by_seed["G"], ddof=1))
    assert row["n_seeds"] == 2
    assert row["gain"] == pytest.approx(by_seed["G"].mean() - by_seed["f"].mean())
    assert np.isnan(at(judgement, "f", "ece")[["std", "gain", "gain_low"]].astype(float)).all()


def test_golden_values_of_version_2(store: FeatureStore) -> None:
    """If these change, the version of the evaluate stage must be raised."""
    average = judged(cells(store), (F,), Resampling(100)).average.set_index("metric")
    found = average.loc[["accuracy", "ece", "ece_adaptive"], ["mean", "low", "high"]]
    assert VERSION == 2
    expected = [
        [0.8910256, 0.8199775, 0.9530660],
        [0.2205035, 0.1882072, 0.2621777],
        [0.2675272, np.nan, np.nan],
    ]
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-6)


def test_the_same_predictor_gains_nothing_in_any_resample(store: FeatureStore) -> None:
    judgement = judged(cells(store), (F, Predictor("twin", 0, F.predict)), Resampling(100))
    for metric in RESAMPLED:
        gains = at(judgement, "twin", metric)[["gain", "gain_low", "gain_high"]]
        assert gains.tolist() == [0, 0, 0]


def test_results_do_not_depend_on_how_the_rows_are_sharded(store: FeatureStore) -> None:
    one, other = (
        judged(cells(store, shard_rows=rows), PREDICTORS, Resampling(100)) for rows in (7, 84)
    )
    for name in ("by_group", "average", "bins"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-9)


def test_bins_add_up_to_the_metrics_that_are_made_of_them(store: FeatureStore) -> None:
    judgement = judged(cells(store), PREDICTORS, Resampling(0))
    assert judgement.bins["low"].between(0, 0.9).all()
    keys = ["predictor", "seed", "corruption", "severity"]
    gaps = (judgement.bins["n_correct"] - judgement.bins["confidence_sum"]).abs()
    bins = judgement.bins.assign(gap=gaps).groupby(keys)[["gap", "n_rows"]].sum()
    by_group = judgement.by_group.set_index(keys).sort_index()
    assert (bins["n_rows"] == by_group["n_rows"]).all()
    np.testing.assert_allclose(bins["gap"] / bins["n_rows"], by_group["ece"])


def test_rows_that_were_not_read_are_left_out_and_counted(store: FeatureStore) -> None:
    judgement = judged(cells(store), PREDICTORS, Resampling(10))
    assert judgement.n_left_out == {"f": 1, "G": 2}
    of_f = judgement.by_group[judgement.by_group["predictor"] == "f"]
    assert of_f["n_rows"].tolist() == [14, 14, 14, 14, 14, 13]
    assert UNREAD % 6 == 5  # in the last cell


def test_without_resamples_there_are_means_and_no_intervals(store: FeatureStore) -> None:
    average = judged(cells(store), PREDICTORS, Resampling(0)).average
    assert average["mean"].notna().all()
    assert average[["low", "high", "gain_low", "gain_high"]].isna().all(axis=None)


def test_a_set_without_corruptions_is_one_cell_whose_rows_are_its_images(
    store: FeatureStore,
) -> None:
    judgement = judged(cells(store, has_cells=False), PREDICTORS, Resampling(10))
    assert list(judgement.by_group.columns[:3]) == ["predictor", "seed", "n_rows"]
    assert judgement.by_group["n_rows"].tolist() == [83, 83, 83]


def test_the_image_ends_the_name_in_a_corrupted_set_and_is_the_row_in_any_other() -> None:
    names = ["fog/3/00042", "snow/1/00042", "snow/1/123456"]
    samples = pd.DataFrame({"sample_id": names, "corruption": ["fog", "snow", "snow"]})
    rows = np.arange(10, 13)
    assert images_of(samples, rows).tolist() == [42, 42, 123456]
    assert images_of(samples[["sample_id"]], rows).tolist() == [10, 11, 12]


@pytest.mark.parametrize("columns", [{"sample_id": ["fog/3/a.png"]}, {}])
def test_a_corrupted_set_without_numbered_images_is_not_resampled(columns: dict[str, Any]) -> None:
    samples = pd.DataFrame({**columns, "corruption": ["fog"]})
    with pytest.raises(InputError, match="0 resamples"):
        images_of(samples, np.arange(1))
