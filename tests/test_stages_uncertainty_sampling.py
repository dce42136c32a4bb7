"""Predictions from several sets of weights, against enumeration and slow loops."""

from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.introspection.laplace import Full
from stages.judging.judgement import Predictions, Rows
from stages.reflection.losses import softmax
from stages.sensing.stored_layer import StoredLayer
from stages.uncertainty.sampling import (
    BLOCK_ROWS,
    DropoutSampling,
    Ensemble,
    LaplaceSampling,
    mixed,
)
from store.shards import Shard

N_ROWS, WIDTH, N_CLASSES = 2 * BLOCK_ROWS + 22, 3, 4
RNG = np.random.default_rng(0)
LAYER = StoredLayer(RNG.normal(size=(N_CLASSES, WIDTH)), RNG.normal(size=N_CLASSES))
FEATURES = RNG.normal(size=(N_ROWS, WIDTH)).astype(np.float32)


def rows_of(start: int, stop: int) -> Rows:
    features = FEATURES[start:stop]
    assert LAYER.bias is not None
    return Rows(Shard(0, start, stop), features, features @ LAYER.weight.T + LAYER.bias)


ALL = rows_of(0, N_ROWS)
POSTERIOR = Full.of([(ALL.features, ALL.logits)], has_bias=True).posterior(2.0)


def laplace(*, n_samples: int = 20, is_probit: bool = False) -> LaplaceSampling:
    return LaplaceSampling("L", POSTERIOR, n_samples, 3, is_probit)


def dropout(rate: float = 0.4, n_samples: int = 20) -> DropoutSampling:
    return DropoutSampling("dropout", LAYER, rate, n_samples, 3)


def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(p)).sum(axis=-1)


def test_information_is_the_entropy_that_the_weights_explain() -> None:
    samples = RNG.dirichlet(np.ones(N_CLASSES), (6, 5))
    found = mixed(samples)

    assert found.probabilities == pytest.approx(samples.mean(axis=0))
    slow = entropy(samples.mean(axis=0)) - np.mean([entropy(each) for each in samples], axis=0)
    assert found.information == pytest.approx(slow, abs=1e-12)


def test_members_that_agree_give_no_information() -> None:
    one_hot = np.eye(N_CLASSES)

    assert mixed([one_hot] * 3).information.tolist() == [0.0] * N_CLASSES  # type: ignore[union-attr]


@pytest.mark.parametrize("judge", [laplace(), laplace(is_probit=True), dropout()])
def test_samples_do_not_depend_on_the_shards(judge: LaplaceSampling | DropoutSampling) -> None:
    whole, ends = judge.answer(ALL), (0, 10, BLOCK_ROWS, BLOCK_ROWS + 1, N_ROWS)
    parts = [judge.answer(rows_of(*each)) for each in pairwise(ends)]

    for name in Predictions._fields:
        joined = np.concatenate([getattr(each, name) for each in parts])
        assert joined == pytest.approx(getattr(whole, name), abs=1e-12)


def test_dropout_converges_to_the_mean_over_all_masks() -> None:
    rate, row = 0.4, FEATURES[0].astype(np.float64)
    assert LAYER.bias is not None
    masks = np.array(list(product([0, 1], repeat=WIDTH)))
    chances = np.prod(np.where(masks, 1 - rate, rate), axis=1)
    p = softmax(row * masks / (1 - rate) @ LAYER.weight.T + LAYER.bias)
    found = dropout(rate, n_samples=20_000).answer(rows_of(0, 1))

    assert found.probabilities[0] == pytest.approx(chances @ p, abs=0.01)
    assert found.information is not None
    slow = entropy(chances @ p) - chances @ entropy(p)
    assert found.information[0] == pytest.approx(slow, abs=0.01)


def test_laplace_samples_converge_to_the_gaussian_of_the_logits() -> None:
    rows, rng = rows_of(0, 1), np.random.default_rng(9)
    covariance = POSTERIOR.covariances(rows.features)[0]
    logits = rng.multivariate_normal(rows.logits[0], covariance, 100_000)
    found = laplace(n_samples=20_000).answer(rows)

    assert found.probabilities[0] == pytest.approx(softmax(logits).mean(axis=0), abs=0.01)
    assert found.information is not None
    slow = entropy(softmax(logits).mean(axis=0)) - entropy(softmax(logits)).mean()
    assert found.information[0] == pytest.approx(slow, abs=0.01)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    members = (lambda rows: softmax(rows.logits), lambda rows: softmax(2 * rows.logits))
    found = Ensemble("E", members).answer(ALL)

    mean = (softmax(ALL.logits) + softmax(2 * ALL.logits)) / 2
    assert found.probabilities == pytest.approx(mean)
    assert found.information is not None
    assert (found.information >= 0).all()


@pytest.mark.parametrize("judge", [laplace(), dropout()])
def test_rows_of_nan_stay_nan_and_change_no_other_row(
    judge: LaplaceSampling | DropoutSampling,
) -> None:
    features = ALL.features.copy()
    features[5] = np.nan
    found = judge.answer(ALL._replace(features=features))

    assert np.isnan(found.probabilities[5]).all()
    others = np.delete(np.arange(N_ROWS), 5)
    expected = judge.answer(ALL).probabilities[others]
    assert found.probabilities[others] == pytest.approx(expected, abs=1e-12)
