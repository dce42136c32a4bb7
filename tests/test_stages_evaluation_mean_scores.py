"""Mean scores by groups, as `query --score` prints them, equal a loop over single rows."""

import json
import tracemalloc

import numpy as np
import pytest
from answers import answered
from cells import UNREAD, cells, small_head
from made import make_in
from typer.testing import CliRunner

from cli.app import app
from pipeline.fields import Labelled
from stages.errors import InputError
from stages.evaluation.recognition import query
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.predictors import factors as head_factors_of
from stages.metrics.calibration import METRICS
from stages.reflection import reduction
from stages.reflection.conditions import Condition
from stages.scores import factors
from stages.scores.asked_scores import Scored, asked_scores, values_of
from stages.scores.factors import Linear, TrainingRows, as_it_is
from stages.scores.known_scores import SCORES
from store.catalog import FeatureStore

PLAIN = ("energy", "exgrad", "msp")
CELL = ("corruption", "severity")


def energy_of(z):
    return np.log(sum(np.exp(float(each)) for each in z))


def exgrad_of(f, z):
    e = [np.exp(float(each)) for each in z]
    p = [each / sum(e) for each in e]
    norm = sum(abs(float(each)) for each in f)
    return sum(p[c] * 2 * (1 - p[c]) * norm for c in range(len(p)))


@pytest.mark.parametrize("has_labels", [True, False])
def test_means_equal_a_loop_over_rows_with_and_without_labels(
    store: FeatureStore, has_labels: bool
) -> None:
    found = cells(store, has_labels=has_labels)
    scores = asked_scores(store, found, ("energy", "exgrad"))
    answer = query(found, by=CELL, metrics=(), scores=scores)
    assert answer.n_left_out == 1
    samples, f, z = found.samples(), found.read("features"), found.read("logits")
    assert len(answer.rows) == 6
    for row in answer.rows:
        assert list(row) == [*CELL, "n_rows", "energy", "exgrad"]
        rows = [
            at
            for at in range(len(z))
            if at != UNREAD and all(samples[name][at] == row[name] for name in CELL)
        ]
        assert row["n_rows"] == len(rows)
        assert row["energy"] == pytest.approx(np.mean([energy_of(z[at]) for at in rows]))
        assert row["exgrad"] == pytest.approx(np.mean([exgrad_of(f[at], z[at]) for at in rows]))


def test_beside_metrics_scores_are_of_the_same_rows(store: FeatureStore) -> None:
    found = answered(store)
    scores = asked_scores(store, found, ("entropy", "energy"))
    labels, z = found.samples()["label"].to_numpy(), found.read("logits")
    for metrics in (("accuracy",), ("accuracy", "nll", "entropy")):
        answer = query(found, by=("kind",), metrics=metrics, scores=scores)
        alone = query(found, by=("kind",), metrics=("accuracy", "entropy"))
        assert answer.n_left_out == alone.n_left_out == 4
        for at, (row, plain) in enumerate(zip(answer.rows, alone.rows, strict=True)):
            rows = [n for n in range(at, 50, 2) if n not in (4, 27) and labels[n] >= 0]
            assert (row["n_rows"], row["accuracy"]) == (len(rows), plain["accuracy"])
            assert row["energy"] == pytest.approx(np.mean([energy_of(z[n]) for n in rows]))
            assert row["entropy"] == pytest.approx(plain["entropy"])
    without_metrics = query(found, metrics=(), scores=scores)
    assert (without_metrics.rows[0]["n_rows"], without_metrics.n_left_out) == (48, 2)


def test_rows_whose_features_alone_are_broken_are_left_out_of_all_columns(
    store: FeatureStore,
) -> None:
    found = answered(store, broken=(6,))
    both = query(found, scores=asked_scores(store, found, ("energy",)))
    assert both.n_left_out == query(found).n_left_out + 1


def test_a_group_of_failed_rows_has_no_mean(store: FeatureStore) -> None:
    found = cells(store)
    scores = asked_scores(store, found, PLAIN)
    where = [Condition("status", ("unreadable",))]
    (row,) = query(found, metrics=(), scores=scores, where=where).rows
    assert row["n_rows"] == 0
    assert np.isnan([row[name] for name in PLAIN]).all()


def test_detectors_are_fitted_to_the_training_rows(store: FeatureStore) -> None:
    found = cells(store)
    training = cells(store, "train", n_rows=132)
    names = ("mahalanobis", "knn", "energy")
    (row,) = query(found, metrics=(), scores=asked_scores(store, found, names, training)).rows
    none = Linear(np.zeros((3, 4)), np.zeros(3))
    labels = training.samples()["label"].to_numpy()
    rows = TrainingRows.of(training.read("features"), training.read("logits"), labels, none)
    kept = np.arange(84) != UNREAD
    for name in names:
        score = SCORES[name].fitted(lambda: rows, lambda: none)
        slow = score(found.read("features")[kept], found.read("logits")[kept]).mean()
        assert row[name] == pytest.approx(slow, rel=1e-9)


def test_scores_of_a_head_equal_those_of_its_own_factors(store: FeatureStore) -> None:
    found, training = cells(store), cells(store, "train", n_rows=132)
    small_head(store, training, seeds=(1, 0))
    asked = (Labelled(label="H", name="h"),)
    names = ("energy", "exgrad", "mahalanobis")
    (row,) = query(found, scores=asked_scores(store, found, names, training, asked)).rows
    assert list(row) == ["n_rows", "accuracy", *names, *(f"H_{name}" for name in names)]

    head = store.artifact("head", "h")
    layer, kept = head_factors_of(head)[1], np.arange(84) != UNREAD  # of the first seed
    hidden, z = layer(found.read("features")[kept], found.read("logits")[kept])
    labels = training.samples()["label"].to_numpy()
    usable = np.isfinite(training.read("logits")).all(axis=1)
    their = layer(training.read("features")[usable], training.read("logits")[usable])
    rows = TrainingRows.of(*their, labels[usable], Linear(np.zeros((3, 8)), np.zeros(3)))
    fitted = SCORES["mahalanobis"].fitted(lambda: rows, lambda: rows.linear)
    assert row["H_energy"] == pytest.approx(np.mean([energy_of(each) for each in z]))
    expected = [exgrad_of(*each) for each in zip(hidden, z, strict=True)]
    assert row["H_exgrad"] == pytest.approx(np.mean(expected))
    assert row["H_mahalanobis"] == pytest.approx(fitted(hidden, z).mean(), rel=1e-6)


def test_rows_where_a_head_is_not_finite_have_scores_of_f_alone() -> None:
    def halved(f, z):
        return f, np.where(z > 1, np.inf, z / 2)

    z = np.array([[0.0, 1.0], [0.0, 2.0]])
    both = [
        Scored(label, layer, {"max": SCORES["max-logit"].score})
        for label, layer in (("f", as_it_is), ("H", halved))
    ]
    np.testing.assert_array_equal(values_of(both, z, z), [[1, 2], [0.5, np.nan]])


def test_rows_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK_ROWS", 4)
    rng = np.random.default_rng(0)
    f, z = rng.normal(size=(11, 3)), rng.normal(size=(11, 2))
    z[[4, 5, 6, 7, 9]] = np.nan  # a whole block, and one row
    seen = []

    def first(features, logits):
        seen.append(len(logits))
        return logits[:, 0]

    assert values_of([Scored("f", as_it_is, {"first": first})], f, z)[0].tolist() == pytest.approx(
        z[:, 0], nan_ok=True
    )
    assert seen == [4, 2]


def test_memory_does_not_grow_with_the_rows(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With several threads the peak depends on which blocks happen to be computed at once; how far
    # they compute ahead has a test of its own, of `in_threads`.
    monkeypatch.setattr(reduction, "n_cpus", lambda: 1)

    def peak(n_shards: int) -> int:
        found = cells(store, f"of-{n_shards}", n_rows=500 * n_shards, shard_rows=500)
        scores = asked_scores(store, found, PLAIN)
        tracemalloc.start()
        query(found, by=CELL, metrics=(), scores=scores)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # imports
    assert peak(32) < 1.1 * peak(8)


@pytest.mark.parametrize(
    ("names", "has_training", "message"),
    [
        (("odin",), False, "unknown score 'odin': choose from confidence, msp"),
        (("energy", "knn"), False, "score knn: expected --training"),
        (("energy",), True, "none of the scores is fitted"),
        (("knn",), True, "expected features of one network"),
    ],
)
def test_scores_that_cannot_be_computed_are_refused(
    store: FeatureStore, names: tuple[str, ...], has_training: bool, message: str
) -> None:
    training = cells(store, "others", weights="w2") if has_training else None
    with pytest.raises(InputError, match=message):
        asked_scores(store, cells(store), names, training)


def test_a_column_and_a_score_of_one_name_are_refused(store: FeatureStore) -> None:
    found = answered(store)
    scores = asked_scores(store, found, ("confidence",))
    with pytest.raises(InputError, match="'confidence' is asked for as a column"):
        query(found, by=("confidence",), scores=scores)


def test_the_command_prints_scores_alone_or_beside_metrics(store: FeatureStore) -> None:
    found = cells(store)

    def asked(*words: str) -> dict[str, float]:
        command = ["query", found.name, *words, "--json", "--store", store.location]
        (row,) = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
        assert isinstance(row, dict)
        return row

    assert list(asked("--score", "energy,exgrad")) == ["n_rows", "energy", "exgrad"]
    beside = asked("--score", "energy,msp", "--metric", "accuracy,ece")
    assert list(beside) == ["n_rows", "accuracy", "ece", "energy", "msp"]
    assert asked("--score", "energy")["energy"] == beside["energy"]
    assert set(METRICS).isdisjoint(asked("--score", "energy"))
    make_in(store, FitTemperature(features=found.name, name="warm"))
    assert list(asked("--score", "energy", "--head", "T=warm")) == ["n_rows", "energy", "T_energy"]
