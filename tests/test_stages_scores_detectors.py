"""Detectors that are fitted, compared with scikit-learn; and the factors of heads."""

import numpy as np
import pytest
from cells import cells, small_head
from made import make_in
from pydantic import ValidationError
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from stages.errors import InputError
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.head import predict_probabilities
from stages.introspection.predictors import factors, open_head
from stages.ood.ood import Ood
from stages.reflection.losses import softmax
from stages.scores import nearest
from stages.scores.factors import Linear, TrainingRows
from stages.scores.known_scores import SCORES
from stages.scores.mahalanobis import fit_mahalanobis
from stages.scores.nearest import fit_neighbours

RNG = np.random.default_rng(5)
F, Z = (
    np.abs(RNG.normal(size=(30, 6))).astype(np.float32),
    RNG.normal(size=(30, 4)).astype(np.float32),
)
TRAIN, LABELS = np.abs(RNG.normal(size=(90, 6))), RNG.integers(0, 4, 90)
TRAIN_Z = RNG.normal(size=(90, 4))
LINEAR = Linear(np.zeros((4, 6)), np.zeros(4))
TRAINING = TrainingRows.of(TRAIN, TRAIN_Z, LABELS, LINEAR)


def test_the_mahalanobis_distance_is_that_of_scikit_learn():
    means = np.stack([TRAIN[np.equal(LABELS, label)].mean(axis=0) for label in range(4)])
    shared = EmpiricalCovariance(assume_centered=True).fit(TRAIN - means[LABELS])
    expected = np.min([shared.mahalanobis(F - mean) for mean in means], axis=0)

    assert fit_mahalanobis(TRAINING)(F, Z) == pytest.approx(-expected, rel=1e-9)


def test_a_constant_feature_does_not_affect_the_covariance():
    dead = np.pad(TRAIN, ((0, 0), (0, 1)))
    scores = fit_mahalanobis(TrainingRows.of(dead, TRAIN_Z, LABELS, LINEAR))(
        np.pad(F, ((0, 0), (0, 1))), Z
    )

    assert scores == pytest.approx(fit_mahalanobis(TRAINING)(F, Z), rel=1e-6)


def test_the_neighbour_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(nearest, "_PRODUCTS", 700)
    monkeypatch.setattr(nearest, "_GROUP_ROWS", 4)
    unit = TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True)
    queries = F / np.linalg.norm(F, axis=1, keepdims=True)
    distances, _ = NearestNeighbors(n_neighbors=13, algorithm="brute").fit(unit).kneighbors(queries)

    scores = fit_neighbours(TRAINING, k=13)(F, Z)

    assert scores == pytest.approx(-distances[:, -1], rel=1e-7)


def test_unreadable_rows_are_not_training_rows():
    damaged, z = np.vstack([TRAIN, [[np.nan] * 6]]), np.vstack([TRAIN_Z, [[np.nan] * 4]])
    labels = np.append(LABELS, 0)
    for fit in (fit_mahalanobis, fit_neighbours):
        assert (fit(TrainingRows.of(damaged, z, labels, LINEAR))(F, Z) == fit(TRAINING)(F, Z)).all()


@pytest.mark.parametrize(
    ("fit", "labels", "message"),
    [
        (fit_mahalanobis, np.full(30, -1), "expected labelled rows without NaN, found none"),
        (fit_neighbours, np.zeros(30, int), "knn: expected at least 50 training rows, found 30"),
    ],
)
def test_too_few_training_rows_are_refused(fit, labels, message):
    with pytest.raises(InputError, match=message):
        fit(TrainingRows.of(F, Z, labels, LINEAR))


def test_features_too_wide_for_a_covariance_are_refused():
    with pytest.raises(InputError, match="expected at most 11,585 features"):
        fit_mahalanobis(
            TrainingRows.of(np.zeros((1, 11586)), np.zeros((1, 2)), np.zeros(1, int), LINEAR)
        )


@pytest.mark.parametrize(
    ("names", "message"), [((), "at least 1 item"), (("vom",), "expected one of msp, odin, energy")]
)
def test_detectors_are_known_and_at_least_one(names, message):
    with pytest.raises(ValidationError, match=message):
        Ood(inside="few", outside=("other",), detectors=names)


def test_every_score_is_plain_of_a_layer_or_fitted():
    for each in SCORES.values():
        assert [each.score, each.of_layer, each.fit].count(None) == 2


def test_a_head_has_its_own_factors(store):
    found = cells(store)
    small_head(store, found, seeds=(0, 7))
    artifact = store.artifact("head", "h")
    f, z = found.read("features"), found.read("logits")
    for seed, factors_of in factors(artifact).items():
        head = open_head(artifact, seed)
        hidden, logits = factors_of(f, z)
        weight, bias = (
            head.linears[-1].weight.detach().numpy(),
            head.linears[-1].bias.detach().numpy(),
        )

        assert hidden.shape == (len(f), 8)
        assert logits == pytest.approx(hidden @ weight.T + bias, abs=1e-5, nan_ok=True)
        assert softmax(logits) == pytest.approx(predict_probabilities(head, f, z), nan_ok=True)


def test_a_temperature_has_those_of_f_and_neighbours_have_none(store):
    features = cells(store).name
    value = make_in(store, FitTemperature(features=features, name="t")).output.card()["temperature"]
    f, z = factors(store.artifact("head", "t"))[0](F, Z)
    make_in(store, FitNeighbours(features=features, name="n", k=3))

    assert f is F
    assert z == pytest.approx(Z / value)
    with pytest.raises(InputError, match="head 'n': expected a trained network, a temperature"):
        factors(store.artifact("head", "n"))
