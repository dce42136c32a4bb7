"""Accuracies estimated without labels: against loops over rows, and judged by the labels."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from cells import UNREAD, cells, small_head
from made import make_in
from numpy.typing import NDArray
from torch import nn

from cli.app import main
from stages.errors import InputError
from stages.estimation.estimate_accuracy import EstimateAccuracy
from stages.estimation.estimation_result import Estimated, open_estimated
from stages.estimation.estimators import (
    ESTIMATORS,
    Source,
    pseudo_labels,
    quality_of,
    taylor,
    threshold_of,
)
from stages.estimation.group_estimates import _most_unfinished
from stages.introspection.fit_temperature import FitTemperature
from stages.metrics.row_draws import row_draws
from store.catalog import FeatureStore

Values = NDArray[np.float64]
CLEAN, MOVED = "clean-test@net", "shapes-test@net"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = FeatureStore(str(tmp_path_factory.mktemp("store"))).prepare()
    found = cells(store, "clean", n_rows=120, has_cells=False)
    cells(store)
    cells(store, "blank", has_labels=False)
    small_head(store, found, seeds=(0, 7))
    make_in(store, FitTemperature(features=found.name, name="t"))
    return store


def made(store: FeatureStore, **fields: object) -> Estimated:
    stage = EstimateAccuracy(**{"source": CLEAN, "features": MOVED, "heads": (), **fields})
    return open_estimated(make_in(store, stage).output)


def read(store: FeatureStore, name: str) -> tuple[Values, Values, NDArray[np.int64]]:
    found = store.open(name)
    rows = np.delete(np.arange(found.n_rows), UNREAD)
    f, z = (found.read(each).astype(np.float64)[rows] for each in ("features", "logits"))
    return f, z, found.samples()["label"].to_numpy()[rows]


def softmax(logits: Values) -> Values:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slow(source: tuple[Values, ...], f: Values, z: Values, draws: Values) -> dict[str, float]:
    """Every estimate from all rows of a group in memory; the gradient by autograd."""
    _, source_z, y = source
    p, own = softmax(z), softmax(source_z)
    n, n_classes = p.shape
    accuracy = float((own.argmax(axis=1) == y).mean())

    def thresholded(score: Values, theirs: Values) -> float:
        n_errors = int((own.argmax(axis=1) != y).sum())
        return float((score >= np.sort(theirs)[n_errors]).mean())

    def negative_entropy(q: Values) -> Values:
        return (q * np.log(q)).sum(axis=1)

    labels = torch.from_numpy(
        np.array(
            [
                row.argmax() if row.max() > 0.5 else int(u * n_classes)
                for row, u in zip(p, draws, strict=True)
            ]
        )
    )
    weight = torch.zeros(n_classes, f.shape[1], dtype=torch.float64, requires_grad=True)
    logits = torch.from_numpy(z) + torch.from_numpy(f) @ weight.T  # the gradient at W, not at 0
    nn.functional.cross_entropy(logits, labels).backward()
    gradient = np.abs(weight.grad.numpy())
    shares = (1 + z + z**2 / 2) / (1 + z + z**2 / 2).sum(axis=1, keepdims=True)
    is_calibrated = -np.log(p).mean() > 5
    return {
        "ac": float(p.max(axis=1).mean()),
        "doc": accuracy - float(own.max(axis=1).mean() - p.max(axis=1).mean()),
        "atc-mc": thresholded(p.max(axis=1), own.max(axis=1)),
        "atc-ne": thresholded(negative_entropy(p), negative_entropy(own)),
        "gdscore": float((gradient**0.3).sum() ** (1 / 0.3)),
        "nuclear": float(np.linalg.norm(p, "nuc") / math.sqrt(min(n, n_classes) * n)),
        "mano": float(((p if is_calibrated else shares) ** 4).mean() ** 0.25),
    }


def test_estimates_are_those_of_all_rows_of_a_group_in_memory(store: FeatureStore) -> None:
    found = made(store, seed=5)
    source, (f, z, y) = read(store, CLEAN), read(store, MOVED)
    samples = store.open(MOVED).samples().drop(index=UNREAD).reset_index(drop=True)
    draws = np.delete(row_draws(5, 0, 84), UNREAD)
    assert len(found.by_group) == 6
    for row in found.by_group.to_dict(orient="records"):
        fits = (samples["corruption"] == row["corruption"]) & (
            samples["severity"] == row["severity"]
        )
        here = np.flatnonzero(fits)
        assert row["n_rows"] == row["n_labelled"] == len(here)
        assert row["accuracy"] == pytest.approx((z[here].argmax(axis=1) == y[here]).mean())
        expected = slow(source, f[here], z[here], draws[here])
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_shift_that_leaves_confidence_right_is_estimated(store: FeatureStore) -> None:
    """The temperature is fitted on the source, so its confidence is close to its accuracy."""
    found = made(store, heads=["T=t"], features=CLEAN, methods=("ac", "doc", "atc-mc"))
    own = found.by_group[found.by_group["predictor"] == "T"].iloc[0]
    assert own["doc"] == pytest.approx(own["accuracy"])
    assert own["atc-mc"] == pytest.approx(own["accuracy"], abs=1 / 119)
    assert own["ac"] == pytest.approx(own["accuracy"], abs=0.05)


def test_heads_of_all_seeds_are_judged(store: FeatureStore) -> None:
    found = made(store, heads=["H=h", "T=t"])
    seeds = found.by_group.groupby("predictor", sort=False)["seed"].unique().map(list)
    assert seeds.to_dict() == {"f": [0], "H": [0, 7], "T": [0]}
    assert set(found.quality["method"]) == set(ESTIMATORS)
    of_f = found.by_group[found.by_group["predictor"] == "f"]
    row = found.quality.set_index(["predictor", "method"]).loc[("f", "doc")]
    assert row["mae"] == pytest.approx(100 * (of_f["doc"] - of_f["accuracy"]).abs().mean())


def test_without_labels_there_are_estimates_and_no_judgement(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    found, same = made(store, features="blank-test@net"), made(store)
    names = list(ESTIMATORS)
    np.testing.assert_allclose(found.by_group[names], same.by_group[names], rtol=1e-12)
    assert found.by_group["accuracy"].isna().all()
    assert len(found.quality) == 0
    out = said(
        store, capsys, "estimate-accuracy", "--source", CLEAN, "--head", "none", "--features"
    )
    assert "no row has a label: the estimates cannot be judged" in out
    page = said(store, capsys, "report", "--json", found.artifact.name)
    assert json.loads(page)["figures"] == []


def test_the_page_has_a_scatter_plot(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(store, heads=["H=h"])
    page = json.loads(said(store, capsys, "report", "--json", found.artifact.name))
    assert page["figures"] == ["estimated-accuracy", "accuracy-rankings"]
    assert [line.split(",")[0] for line in page["shows"]] == ["For f", "For H"]


def said(store: FeatureStore, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    words = (*words, "blank-test@net") if words[-1] == "--features" else words
    sys.argv = ["intro-pipe", *words, "--store", store.location]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_a_source_whose_rows_are_all_wrong_has_finite_thresholds(store: FeatureStore) -> None:
    """Only target rows that are more confident than every source row count as correct."""
    cells(store, "wrong", n_rows=30, has_cells=False, is_all_wrong=True)

    found = made(store, source="wrong-test@net", methods=("atc-mc", "doc"))

    (_, source, _), (_, z, _) = read(store, "wrong-test@net"), read(store, MOVED)
    above = (softmax(z).max(axis=1) > softmax(source).max(axis=1).max()).sum()
    rows = found.by_group["n_rows"]
    assert found.card.sources["f"].accuracy == 0
    assert (found.by_group["atc-mc"] * rows).sum() == pytest.approx(above)


def test_a_source_without_labels_is_refused_before_anything_is_written(
    store: FeatureStore,
) -> None:
    before = store.artifacts("result")
    with pytest.raises(InputError, match="expected labelled rows, found none among 84"):
        made(store, source="blank-test@net")
    with pytest.raises(InputError, match="unknown column 'level' in --by"):
        made(store, by=("level",))
    assert store.artifacts("result") == before


def test_matrices_of_too_many_groups_are_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.estimation.group_estimates.MAX_BYTES", 10)
    with pytest.raises(InputError, match=r"rows of \d+ groups are mixed"):
        made(store, by=("label",), seed=9)


def test_a_group_is_unfinished_until_its_last_shard() -> None:
    a, b, c = ({name: 1} for name in "abc")
    assert _most_unfinished([a, b, c]) == 1
    assert _most_unfinished([a, b, a, c]) == 2
    assert _most_unfinished([]) == 0


@pytest.mark.parametrize(
    ("scores", "n_below", "expected"),
    [
        ([1, 2, 3, 4], 0, 1),
        ([1, 2, 3, 4], 2, 3),
        ([1, 2, 3, 4], 4, math.nextafter(4, 5)),
        ([1, 2, 2, 2, 3], 2, 2),  # one below 2, four below 3
        ([1, 2, 2, 2, 3], 3, 3),
        ([2, 2, 2], 1, 2),
        ([2, 2, 2], 2, math.nextafter(2, 3)),
    ],
)
def test_a_threshold_has_as_many_scores_below_as_ties_allow(
    scores: list[float], n_below: int, expected: float
) -> None:
    assert threshold_of(np.array(scores, float), n_below) == expected


def test_uncertain_rows_have_random_pseudo_labels() -> None:
    p = np.array([[0.6, 0.4, 0.0], [0.4, 0.3, 0.3], [0.5, 0.3, 0.2]])
    assert pseudo_labels(p, np.array([0.99, 0.4, 0.99])).tolist() == [0, 1, 2]


def test_the_taylor_normalisation_sums_to_one() -> None:
    z = np.random.default_rng(0).normal(size=(5, 4)) * 10
    assert taylor(z).sum(axis=1) == pytest.approx(1)
    assert taylor(z).min() > 0


def test_the_quality_is_nan_where_there_is_nothing_to_compare() -> None:
    accuracy = np.array([0.9, 0.8, 0.7, np.nan])
    found = quality_of("ac", np.array([0.8, 0.8, 0.8, 0.1]), accuracy)
    assert found["n_groups"] == 3
    assert found["mae"] == pytest.approx(100 * (0.1 + 0 + 0.1) / 3)
    assert math.isnan(found["r2"])
    found = quality_of("gdscore", np.array([1.0, 4.0, 9.0, 2.0]), accuracy)
    assert found["spearman"] == pytest.approx(1)
    assert math.isnan(found["mae"])
    assert math.isnan(quality_of("ac", accuracy[:2], accuracy[:2])["spearman"])


def test_an_empty_group_has_no_estimate() -> None:
    from stages.estimation.estimators import COUNTS, Sums, estimates_of

    empty = Sums(3, np.zeros(len(COUNTS)), np.zeros((2, 2)), np.zeros((2, 3)))
    found = estimates_of(empty, Source(10, 0.9, 0.8, 0.1, 0.1), tuple(ESTIMATORS))
    assert all(math.isnan(value) for value in found.values())
