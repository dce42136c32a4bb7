from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from stages.errors import InputError
from stages.introspection.neighbours import Neighbours
from stages.introspection.reading import READS, Reading
from stages.reflection.rank_one import SCALINGS

RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(500, 8))).astype(np.float32)
LOGITS = RNG.normal(size=(500, 4)).astype(np.float32)
LABELS = RNG.integers(4, size=500)
QUERIES = np.abs(RNG.normal(size=(60, 8))).astype(np.float32), RNG.normal(size=(60, 4))


def fitted(reading: Reading, k: int = 10) -> Neighbours:
    return Neighbours.of(FEATURES, LOGITS, LABELS, reading, k=k)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("reads", READS)
def test_shares_are_those_of_scikit_learn_on_dense_vectors(reads: str, scaling: str) -> None:
    found = fitted(Reading(4, 8, reads, scaling=scaling))
    dense, queries = (
        found.reading.vectors(f.astype(np.float64), z.astype(np.float64)).dense()
        for f, z in ((FEATURES, LOGITS), QUERIES)
    )
    judge = KNeighborsClassifier(10, algorithm="brute").fit(dense, LABELS)
    np.testing.assert_allclose(
        found.probabilities(*QUERIES), judge.predict_proba(queries), atol=1e-6
    )


@pytest.mark.parametrize(
    ("reads", "scaling", "temperature"),
    [("features", "none", 0.5), ("features", "minmax", 0.02), ("reflection", "minmax", 0.5)],
)
def test_weighted_votes_are_those_of_scikit_learn(
    reads: str, scaling: str, temperature: float
) -> None:
    plain = fitted(Reading(4, 8, reads, scaling=scaling), k=200)
    found = replace(plain, temperature=temperature)
    dense, queries = (
        found.reading.vectors(f.astype(np.float64), z.astype(np.float64)).dense()
        for f, z in ((FEATURES, LOGITS), QUERIES)
    )
    judge = KNeighborsClassifier(
        200, metric="cosine", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(dense, LABELS)
    np.testing.assert_allclose(
        found.probabilities(*QUERIES), judge.predict_proba(queries), atol=1e-5
    )
    assert not np.allclose(found.probabilities(*QUERIES), plain.probabilities(*QUERIES), atol=1e-3)


def test_vectors_of_zeros_are_orthogonal_to_all() -> None:
    found = replace(fitted(Reading(4, 8, "features", scaling="none"), k=500), temperature=0.5)
    zeros = found.probabilities(np.zeros((1, 8), np.float32), np.zeros((1, 4)))
    np.testing.assert_allclose(zeros[0], np.bincount(LABELS) / 500, atol=1e-6)


def test_votes_do_not_depend_on_how_the_rows_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitted(Reading(4, 8))
    expected = found.probabilities(*QUERIES)
    monkeypatch.setattr("stages.introspection.neighbours._QUERY_ROWS", 7)
    monkeypatch.setattr("stages.introspection.neighbours._TRAINING_ROWS", 6)
    np.testing.assert_array_equal(found.probabilities(*QUERIES), expected)


def test_a_row_of_the_training_set_is_its_own_nearest() -> None:
    found = fitted(Reading(4, 8), k=1).probabilities(FEATURES, LOGITS)
    np.testing.assert_array_equal(found.argmax(axis=1), LABELS)


def test_failed_queries_are_nan_and_touch_no_other() -> None:
    features, logits = QUERIES
    broken = features.copy()
    broken[3, 0] = np.nan
    found, expected = (fitted(Reading(4, 8)).probabilities(f, logits) for f in (broken, features))
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))


def test_rows_without_a_label_do_not_vote() -> None:
    labels = np.where(np.arange(500) < 250, -1, LABELS)
    half = Neighbours.of(FEATURES, LOGITS, labels, Reading(4, 8, "features"), k=10)
    other = Neighbours.of(FEATURES[250:], LOGITS[250:], LABELS[250:], half.reading, k=10)
    assert len(half) == 250
    np.testing.assert_array_equal(half.probabilities(*QUERIES), other.probabilities(*QUERIES))


@pytest.mark.parametrize("k", [0, 501])
def test_more_voters_than_rows_are_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"found k {k} and 500 rows"):
        fitted(Reading(4, 8), k=k)
