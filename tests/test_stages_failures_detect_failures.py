"""Rankings of errors on small cells, against slow versions on the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cells import UNREAD, cells, small_head
from clouds import clouds
from conftest import Command
from made import make_in

from stages.errors import InputError
from stages.failures.detect_failures import CONFIDENCES, DEFAULT, FITTED, DetectFailures
from stages.failures.failure_result import Failures, open_failures
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.predictors import factors
from stages.metrics.bootstrap import Resampling
from stages.metrics.selective import SELECTIVE_METRICS, risk_curve, risks_at
from stages.reflection.losses import softmax
from stages.scores.known_scores import SCORES
from store.catalog import FeatureStore
from store.featureset import FeatureSet


def found_in(store: FeatureStore, found: FeatureSet, **options: Any) -> Failures:
    options = {"heads": {}, "resamples": 0, **options}
    return open_failures(make_in(store, DetectFailures(features=found.name, **options)).output)


def rows_of(found: FeatureSet, corruption: str, severity: int) -> np.ndarray:
    samples = found.samples()
    is_cell = (samples["corruption"] == corruption) & (samples["severity"] == severity)
    return np.setdiff1d(np.flatnonzero(is_cell), [UNREAD])


def test_every_cell_is_ranked_by_its_own_rows(store: FeatureStore) -> None:
    found = cells(store)
    by_group = found_in(store, found).by_group
    features, logits = found.read("features"), found.read("logits")
    labels = found.samples()["label"].to_numpy()
    assert by_group["confidence"].unique().tolist() == list(DEFAULT)
    for (name, corruption, severity), mine in by_group.groupby(
        ["confidence", "corruption", "severity"]
    ):
        rows = rows_of(found, corruption, severity)
        kind = SCORES[name]
        assert kind.score is not None
        confidence = kind.certain(kind.score(features[rows], logits[rows]))
        curve = risk_curve(confidence, logits[rows].argmax(axis=1) == labels[rows])
        assert mine["n_rows"].tolist() == [len(rows)]
        for metric, value in SELECTIVE_METRICS.items():
            assert mine[metric].iloc[0] == pytest.approx(float(value(curve)[0]), nan_ok=True)


def test_a_head_has_errors_of_its_own_and_is_a_confidence_in_f(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found, seeds=(0, 7))
    by_group = found_in(store, found, heads={"H": "h"}, confidences=("msp",)).by_group
    labels = found.samples()["label"].to_numpy()
    rows = rows_of(found, "fog", 2)
    features, logits = found.read("features")[rows], found.read("logits")[rows]
    is_cell = (by_group["corruption"] == "fog") & (by_group["severity"] == 2)
    in_cell = by_group[is_cell].set_index(["predictor", "confidence", "seed"])
    assert list(in_cell.index) == [
        *(("f", "msp", 0), ("H", "msp", 0), ("f", "H", 0), ("H", "msp", 7), ("f", "H", 7)),
    ]
    for seed, layer in factors(store.artifact("head", "h")).items():
        p = softmax(layer(features, logits)[1].astype(np.float64))
        own = risk_curve(p.max(axis=1), p.argmax(axis=1) == labels[rows])
        predicted = logits.argmax(axis=1)
        of_f = risk_curve(p[np.arange(len(p)), predicted], predicted == labels[rows])
        for name in ("aurc", "auroc_f"):
            metric = SELECTIVE_METRICS[name]
            mine = in_cell.loc[("H", "msp", seed), name]
            assert mine == pytest.approx(metric(own)[0], nan_ok=True)
            mine = in_cell.loc[("f", "H", seed), name]
            assert mine == pytest.approx(metric(of_f)[0], nan_ok=True)


def test_averages_are_over_cells_and_gains_are_paired_with_f(store: FeatureStore) -> None:
    found = cells(store, n_rows=240)
    small_head(store, found)
    result = found_in(store, found, heads={"H": "h"}, confidences=("msp", "energy"), resamples=100)
    average = result.average.set_index(["predictor", "confidence", "metric"])
    means = result.by_group.groupby(["predictor", "confidence"])["aurc"].mean()
    for key in (("f", "energy"), ("H", "msp")):
        row = average.loc[(*key, "aurc")]
        assert row["mean"] == pytest.approx(means[key])
        assert row["gain"] == pytest.approx(means[key] - means[("f", "msp")])
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    base = average.loc[("f", "msp", "aurc")]
    assert np.isnan([base["gain"], base["gain_low"]]).all()
    assert average.loc[("f", "msp", "error_rate"), "mean"] == pytest.approx(
        average.loc[("f", "energy", "error_rate"), "mean"]
    )
    assert average.loc[("f", "energy", "error_rate"), "gain_high"] == 0  # the same errors


def test_intervals_are_those_of_resampled_images(store: FeatureStore) -> None:
    found = cells(store)
    result = found_in(store, found, confidences=("msp",), resamples=100)
    labels, logits = found.samples()["label"].to_numpy(), found.read("logits")
    resampled = []
    for corruption in ("fog", "snow"):
        for severity in (1, 2, 3):
            rows = rows_of(found, corruption, severity)
            weights = Resampling(100, 0).weights(rows // 6)
            confidence = softmax(logits[rows].astype(np.float64)).max(axis=1)
            is_correct = logits[rows].argmax(axis=1) == labels[rows]
            curve = risk_curve(confidence, is_correct, weights)
            resampled.append(SELECTIVE_METRICS["augrc"](curve))
    slow = np.nanmean(resampled, axis=0)
    row = result.average.set_index("metric").loc["augrc"]
    ends = row["mean"] + np.percentile(slow - slow.mean(), [2.5, 97.5])
    assert row[["low", "high"]].tolist() == pytest.approx(ends)


def test_curves_are_the_mean_risk_of_the_cells(store: FeatureStore) -> None:
    found = cells(store)
    curves = found_in(store, found, confidences=("msp",)).curves
    labels, logits = found.samples()["label"].to_numpy(), found.read("logits")
    slow = []
    for corruption in ("fog", "snow"):
        for severity in (1, 2, 3):
            rows = rows_of(found, corruption, severity)
            confidence = softmax(logits[rows].astype(np.float64)).max(axis=1)
            curve = risk_curve(confidence, logits[rows].argmax(axis=1) == labels[rows])
            slow.append(risks_at(np.array([0.3, 1.0]), curve)[:, 0])
    mine = curves.set_index("coverage")["risk"]
    assert [mine[0.3], mine[1.0]] == pytest.approx(np.mean(slow, axis=0))


@pytest.mark.parametrize("shard_rows", [7, 84])
def test_the_result_does_not_depend_on_the_shards(store: FeatureStore, shard_rows: int) -> None:
    options: dict[str, Any] = {"confidences": ("exgrad",), "resamples": 100}
    one = found_in(store, cells(store), **options).average
    other = found_in(store, cells(store, "again", shard_rows=shard_rows), **options).average

    pd.testing.assert_frame_equal(one, other)


def test_fitted_confidences_are_fitted_to_the_training_rows(store: FeatureStore) -> None:
    train, test = clouds(store), clouds(store, "clouds-test")
    needs_weights = {"residual", "vim", "react", "dice", "fdbd"}  # there is no model
    fitted = tuple(name for name in FITTED if name not in needs_weights)
    result = found_in(store, test, confidences=("msp", *fitted), training=train.name)

    assert result.by_group["confidence"].tolist() == ["msp", *fitted]
    assert result.by_group["auroc_f"].between(0, 1).all()
    assert train.name in result.card.definitions["knn"]
    assert result.card.left_out_rows == {"f": 1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"confidences": ("knn",)}, "--confidence knn: expected --training"),
        ({"training": "clouds-train@net"}, "none of the confidences is fitted"),
        ({"confidences": ("ghost",)}, "expected one of msp"),
        ({"heads": {"msp": "n"}}, "'msp' is a confidence and the label of a head"),
        ({"heads": {"N": "n"}}, "head 'n': expected a trained network"),
        (
            {"confidences": ("knn",), "training": "others-train@net"},
            "made with the model 'net' \\(w2",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    store: FeatureStore, options: dict[str, Any], reason: str
) -> None:
    train, _ = clouds(store), clouds(store, "others-train", weights="w2")
    make_in(store, FitNeighbours(features=train.name, name="n", k=3))
    with pytest.raises(ValueError, match=reason):
        found_in(store, train, **options)
    assert store.artifacts("result") == ()


def test_rows_without_labels_are_refused(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="expected labelled rows, found none among 300"):
        found_in(store, clouds(store, is_labelled=False))


def test_the_largest_probability_is_no_second_name_of_msp() -> None:
    assert "confidence" not in CONFIDENCES
    assert set(DEFAULT) <= set(CONFIDENCES)


def test_the_page_says_that_there_are_no_errors(
    store: FeatureStore, tmp_path: Path, intro_pipe: Command
) -> None:
    found = found_in(store, clouds(store, is_right=True))
    intro_pipe(f"report {found.artifact.name} --out {tmp_path}/page --store {store.location}")
    text = (tmp_path / "page" / "report.md").read_text()
    assert "f is right, or wrong, in all rows: nothing to rank." in text
    assert "of nan" not in text
