"""Laplace approximations against autograd, dense matrices and laplace-torch."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from stages.errors import InputError
from stages.introspection.laplace import (
    CURVATURES,
    MAX_PARAMETERS,
    Block,
    Full,
    Kronecker,
    extended,
    probit_logits,
)
from stages.introspection.prior_precision import (
    PRIORS,
    best_prior,
    log_likelihood_of,
    log_marginal_likelihood,
    probit_nll,
)
from stages.reflection.losses import softmax

Case = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def case(n_rows: int = 40, width: int = 3, n_classes: int = 3, *, has_bias: bool = True) -> Case:
    """Features, weight, bias and labels."""
    rng = np.random.default_rng(5)
    features, weight = rng.normal(size=(n_rows, width)), rng.normal(size=(n_classes, width))
    bias = rng.normal(size=n_classes) * has_bias
    return features, weight, bias, rng.integers(0, n_classes, n_rows)


def blocks_of(features: NDArray[np.float64], logits: NDArray[np.float64]) -> list[Block]:
    """Three blocks of unequal sizes."""
    ends = (0, 7, 8, len(features))
    return [(features[a:b], logits[a:b]) for a, b in pairwise(ends)]


def hessian_of(found: Case, *, has_bias: bool) -> NDArray[np.float64]:
    """Hessian of the summed cross entropy to the weights and biases, by autograd."""
    features, weight, bias, labels = found
    parameters = np.concatenate([weight, bias[:, np.newaxis]], axis=1) if has_bias else weight
    inputs = torch.from_numpy(extended(features, has_bias=has_bias))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        logits = inputs @ flat.reshape(parameters.shape).T
        return functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, torch.from_numpy(parameters.ravel()))
    assert isinstance(hessian, torch.Tensor)
    return hessian.numpy()


def jacobian_of(row: NDArray[np.float64], n_classes: int, *, has_bias: bool) -> NDArray[np.float64]:
    """Derivative of the logits to the weights and biases, ``[N, N (d + 1)]``."""
    return np.kron(np.eye(n_classes), extended(row[np.newaxis], has_bias=has_bias))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("n_rows", "width", "n_classes"), [(40, 3, 3), (25, 5, 2), (9, 2, 6)])
def test_the_full_posterior_is_the_inverse_of_the_hessian(
    n_rows: int, width: int, n_classes: int, has_bias: bool
) -> None:
    found = case(n_rows, width, n_classes, has_bias=has_bias)
    features, weight, bias, _ = found
    full = Full.of(blocks_of(features, features @ weight.T + bias), has_bias=has_bias)
    hessian = hessian_of(found, has_bias=has_bias)
    posterior = full.posterior(0.3)
    inverse = np.linalg.inv(hessian + 0.3 * np.eye(len(hessian)))

    assert posterior.covariance.reshape(inverse.shape) == pytest.approx(inverse, abs=1e-9)
    assert np.sort(full.eigenvalues) == pytest.approx(np.linalg.eigvalsh(hessian), abs=1e-8)
    for row in features[:4]:
        jacobian = jacobian_of(row, n_classes, has_bias=has_bias)
        slow = jacobian @ inverse @ jacobian.T
        root = posterior.deviations(row[np.newaxis], np.eye(n_classes)[np.newaxis])[0].T
        assert root @ root.T == pytest.approx(slow, rel=1e-7)
        assert posterior.variances(row[np.newaxis])[0] == pytest.approx(np.diag(slow))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("n_rows", "width", "n_classes"), [(40, 3, 3), (25, 5, 2), (9, 2, 6)])
def test_the_kronecker_posterior_is_that_of_its_dense_matrix(
    n_rows: int, width: int, n_classes: int, has_bias: bool
) -> None:
    features, weight, bias, _ = case(n_rows, width, n_classes, has_bias=has_bias)
    logits = features @ weight.T + bias
    kronecker = Kronecker.of(blocks_of(features, logits), has_bias=has_bias)
    p, f = softmax(logits), extended(features, has_bias=has_bias)
    of_classes = sum(np.diag(each) - np.outer(each, each) for each in p)
    dense = np.kron(of_classes, sum(np.outer(each, each) for each in f)) / n_rows
    inverse = np.linalg.inv(dense + 0.3 * np.eye(len(dense)))

    found = np.linalg.eigvalsh(dense)
    assert np.sort(kronecker.eigenvalues) == pytest.approx(found, abs=1e-8)
    posterior = kronecker.posterior(0.3)
    for row in features[:4]:
        jacobian = jacobian_of(row, n_classes, has_bias=has_bias)
        slow = jacobian @ inverse @ jacobian.T
        root = posterior.deviations(row[np.newaxis], np.eye(n_classes)[np.newaxis])[0].T
        assert root @ root.T == pytest.approx(slow, rel=1e-9)
        assert posterior.variances(row[np.newaxis])[0] == pytest.approx(np.diag(slow))


FULL_VARIANCES = [
    [6.907161737409259, 6.4671560898205485, 6.547007842282124],
    [2.641901800136239, 2.4526759891151078, 2.406418217380706],
]
FULL_PROBIT = [
    [0.10954103235965106, 0.3013786599971442, 0.5890803076432047],
    [0.2623993492024153, 0.1674961955648805, 0.5701044552327043],
]
FULL_EVIDENCE = {
    0.01: -93.15480942218703,
    0.7: -79.68918860465774,
    1.0: -79.7567858488426,
    100.0: -488.89417661267225,
}
KRON_VARIANCES = [
    [6.1207968411776745, 5.88680956383814, 5.967518042846274],
    [1.7148374015540506, 1.6347129102503304, 1.6623499933342964],
]
KRON_PROBIT = [
    [0.12524031793095544, 0.24801022790172203, 0.6267494541673226],
    [0.30164977369022933, 0.11043680932670608, 0.5879134169830647],
]
KRON_EVIDENCE = {
    0.01: -84.12087823820278,
    0.7: -74.35649109223509,
    1.0: -74.5738034531023,
    100.0: -454.5721299743758,
}


@pytest.mark.parametrize(
    ("structure", "has_bias", "variances", "probit", "evidence"),
    [
        ("full", True, FULL_VARIANCES, FULL_PROBIT, FULL_EVIDENCE),
        ("kfac", False, KRON_VARIANCES, KRON_PROBIT, KRON_EVIDENCE),
    ],
)
def test_both_structures_are_those_of_laplace_torch(
    structure: str,
    has_bias: bool,
    variances: list[list[float]],
    probit: list[list[float]],
    evidence: dict[float, float],
) -> None:
    """Stored values of laplace-torch 0.3, whose KFAC has a block of its own for the bias::

    net = Sequential(Identity(), Linear(3, 3, bias=has_bias))  # of `case(has_bias=has_bias)`
    la = Laplace(net, "classification", "last_layer", structure, prior_precision=0.7)
    la.fit(DataLoader(TensorDataset(features, labels), batch_size=40))  # full, kron
    x = np.random.default_rng(6).normal(size=(2, 3))
    la._glm_predictive_distribution(x)[1], la(x, link_approx="probit")
    la.log_marginal_likelihood(prior_precision)
    """
    features, weight, bias, labels = case(has_bias=has_bias)
    logits = features @ weight.T + bias
    curvature = CURVATURES[structure].of([(features, logits)], has_bias=has_bias)
    posterior = curvature.posterior(0.7)
    queries = np.random.default_rng(6).normal(size=(2, 3))
    found = posterior.variances(queries)

    assert found == pytest.approx(np.array(variances), rel=1e-6)
    predicted = softmax(probit_logits(queries @ weight.T + bias, found))
    assert predicted == pytest.approx(np.array(probit), rel=1e-6)
    squared_norm, likelihood = (
        (weight**2).sum() + (bias**2).sum(),
        log_likelihood_of(logits, labels),
    )
    for prior, expected in evidence.items():
        mine = log_marginal_likelihood(curvature.eigenvalues, squared_norm, likelihood, prior)
        assert mine == pytest.approx(expected, rel=1e-6)


def test_the_search_finds_the_best_prior() -> None:
    assert best_prior(lambda prior: (math.log10(prior) - 1.234) ** 2) == pytest.approx(
        10**1.234, rel=0.01
    )
    assert best_prior(lambda prior: prior) == pytest.approx(PRIORS[0], rel=0.01)


def test_a_strong_prior_leaves_the_predictions_as_they_are() -> None:
    features, weight, bias, labels = case()
    logits = features @ weight.T + bias
    posterior = Full.of([(features, logits)], has_bias=True).posterior(1e12)

    plain = -log_likelihood_of(logits, labels) / len(labels)
    assert probit_nll(posterior, features, logits, labels) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("structure", CURVATURES)
def test_no_rows_are_refused(structure: str) -> None:
    with pytest.raises(InputError, match="expected labelled rows without NaN, found none"):
        CURVATURES[structure].of([], has_bias=True)


def test_a_matrix_that_is_too_large_is_refused_before_it_is_made() -> None:
    rows = np.ones((1, MAX_PARAMETERS)), np.ones((1, 2))

    with pytest.raises(InputError, match="found 12,002: use --structure kfac"):
        Full.of([rows], has_bias=True)
