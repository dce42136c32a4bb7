"""Influence scores against explicit gradients and inverses, and against retrained regressions."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import pearsonr
from torch.nn import functional

from stages.influence.directions import (
    curved_directions,
    damped,
    gradient_factors,
    plain_directions,
    scores_of,
)
from stages.influence.strongest import Strongest
from stages.introspection.laplace import CURVATURES, Full, Kronecker, extended

Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
WIDTH, N_CLASSES = 4, 3
BIASED = pytest.mark.parametrize("has_bias", [True, False])


def rows(n: int, seed: int) -> Rows:
    """Features, logits and classes."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, WIDTH)),
        rng.normal(size=(n, N_CLASSES)),
        rng.integers(0, N_CLASSES, n),
    )


def gradients(found: Rows, *, has_bias: bool) -> NDArray[Any]:
    """Gradients of the cross entropy at W and b by autograd, one sample at a time."""
    out = []
    for f, z, y in zip(*found, strict=True):
        x = torch.from_numpy(extended(f[None], has_bias=has_bias)[0])
        weight = torch.zeros(N_CLASSES, len(x), dtype=torch.float64, requires_grad=True)
        logits = weight @ x + torch.from_numpy(z)
        functional.cross_entropy(logits[None], torch.tensor([y])).backward()
        assert weight.grad is not None
        out.append(weight.grad.numpy().ravel())
    return np.stack(out)


def blocks_of(found: Rows) -> Any:
    return ((found[0][at], found[1][at]) for at in (slice(0, 7), slice(7, None)))


@BIASED
def test_exact_scores_are_products_with_the_inverse_of_the_hessian(has_bias: bool) -> None:
    training, explained = rows(20, 0), rows(5, 1)
    posterior, prior = damped(Full, blocks_of(training), 0.1, has_bias=has_bias)
    hessian: Any = 0
    for f, z in zip(extended(training[0], has_bias=has_bias), training[1], strict=True):
        p = np.exp(log_softmax(z))
        hessian = hessian + np.kron(np.diag(p) - np.outer(p, p), np.outer(f, f))
    assert prior == pytest.approx(0.1 * np.trace(hessian) / len(hessian))
    inverse = np.linalg.inv(hessian + prior * np.eye(len(hessian)))
    slow = (
        gradients(training, has_bias=has_bias) @ inverse @ gradients(explained, has_bias=has_bias).T
    )
    directions = curved_directions(posterior, *gradient_factors(*explained, has_bias=has_bias))
    fast = scores_of(directions, *gradient_factors(*training, has_bias=has_bias))
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-12)


@BIASED
def test_kfac_scores_are_products_with_the_inverse_of_a_kronecker_product(has_bias: bool) -> None:
    training, explained = rows(20, 2), rows(5, 3)
    posterior, prior = damped(Kronecker, blocks_of(training), 0.1, has_bias=has_bias)
    f, p = extended(training[0], has_bias=has_bias), np.exp(log_softmax(training[1], axis=1))
    of_classes = sum(np.diag(each) - np.outer(each, each) for each in p) / len(p)
    whole = len(p) * np.kron(of_classes, f.T @ f / len(p))
    inverse = np.linalg.inv(whole + prior * np.eye(len(whole)))
    slow = (
        gradients(training, has_bias=has_bias) @ inverse @ gradients(explained, has_bias=has_bias).T
    )
    directions = curved_directions(posterior, *gradient_factors(*explained, has_bias=has_bias))
    fast = scores_of(directions, *gradient_factors(*training, has_bias=has_bias))
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-12)


@BIASED
def test_a_term_of_tracin_is_a_product_of_gradients(has_bias: bool) -> None:
    training, explained = rows(20, 4), rows(5, 5)
    slow = gradients(training, has_bias=has_bias) @ gradients(explained, has_bias=has_bias).T
    directions = plain_directions(*gradient_factors(*explained, has_bias=has_bias), 0.5)
    fast = scores_of(directions, *gradient_factors(*training, has_bias=has_bias))
    np.testing.assert_allclose(fast, 0.5 * slow, rtol=1e-12, atol=1e-15)
    f, g = (extended(each[0], has_bias=has_bias) for each in (training, explained))
    d, e = (gradient_factors(*each, has_bias=has_bias)[0] for each in (training, explained))
    np.testing.assert_allclose(fast, 0.5 * (f @ g.T) * (d @ e.T))


CAPTUM = {
    True: [
        [-0.12792444860799174, 0.0905802762695585],
        [-0.14444212711690924, -0.002262892527484881],
        [0.5609668535318499, -0.278492684159577],
        [0.43108719742022195, 0.6774936791094319],
        [0.7820708522164996, 0.4512091568730496],
        [0.7968980054342666, 0.2378103174835647],
    ],
    False: [
        [-0.0974644629347438, 0.026572014002018023],
        [-0.3412156382789841, 0.15256379927979546],
        [0.4148495969837235, -0.14824479607323102],
        [0.2317287400500846, 0.8286800676597282],
        [0.5915018881328068, 0.6084647335510566],
        [0.6220963112620211, 0.40160846008335976],
    ],
}


@BIASED
def test_tracin_over_two_snapshots_is_that_of_captum(has_bias: bool) -> None:
    """Stored values of captum 0.9.0, whose `TracInCPFast` leaves out the gradient of the bias::

    layer = torch.nn.Linear(4, 3).double()
    net, data = Sequential(layer), TensorDataset(torch.tensor(features), torch.tensor(labels))
    def load(net, at):  # the state of a snapshot, and its learning rate
        w, b = map(torch.tensor, states[at])
        net[0].load_state_dict({"weight": w, "bias": b})
        return (0.1, 0.02)[at]
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    full = TracInCP(net, data, [0, 1], load, ["0"], loss, 4, sample_wise_grads_per_batch=True)
    fast = TracInCPFast(net, layer, data, [0, 1], load, loss, 4)
    asked = torch.tensor(explained), torch.tensor(classes)
    print({True: full.influence(asked).T.tolist(), False: fast.influence(asked).T.tolist()})
    """
    rng = np.random.default_rng(9)
    features, labels = rng.normal(size=(6, WIDTH)), rng.integers(0, N_CLASSES, 6)
    explained, classes = rng.normal(size=(2, WIDTH)), np.array([2, 0])
    states = [(rng.normal(size=(N_CLASSES, WIDTH)), rng.normal(size=N_CLASSES)) for _ in range(2)]
    found = np.zeros((6, 2))
    for (weight, bias), rate in zip(states, (0.1, 0.02), strict=True):
        training, asked = (
            gradient_factors(f, f @ weight.T + bias, y, has_bias=has_bias)
            for f, y in ((features, labels), (explained, classes))
        )
        found += scores_of(plain_directions(*asked, rate), *training)
    np.testing.assert_allclose(found, CAPTUM[has_bias], rtol=1e-10)


PRIOR = 1.0


def trained(features: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Weights of a softmax regression with an L2 penalty, at its optimum."""
    x = extended(features, has_bias=True)

    def loss(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        weight = flat.reshape(N_CLASSES, -1)
        logs = log_softmax(x @ weight.T, axis=1)
        delta = np.exp(logs)
        delta[np.arange(len(x)), labels] -= 1
        value = -logs[np.arange(len(x)), labels].sum() + PRIOR / 2 * (flat**2).sum()
        return value, (delta.T @ x).ravel() + PRIOR * flat

    start = np.zeros(N_CLASSES * x.shape[1])
    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 1000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(N_CLASSES, -1))


@pytest.mark.parametrize(("structure", "at_least"), [("full", 0.97), ("kfac", 0.7)])
def test_scores_foretell_the_loss_without_a_training_row(structure: str, at_least: float) -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, N_CLASSES, 60)
    features = np.eye(N_CLASSES, WIDTH)[labels] + 0.7 * rng.normal(size=(60, WIDTH))
    explained = rng.normal(size=(3, WIDTH))
    weight = trained(features, labels)
    logits, others = (extended(each, has_bias=True) @ weight.T for each in (features, explained))
    classes = others.argmax(axis=1)
    curvature = CURVATURES[structure].of([(features, logits)], has_bias=True)
    ours = gradient_factors(explained, others, classes, has_bias=True)
    directions = curved_directions(curvature.posterior(PRIOR), *ours)
    scores = scores_of(directions, *gradient_factors(features, logits, labels, has_bias=True))
    rises = []
    for left_out in range(len(labels)):
        kept = np.arange(len(labels)) != left_out
        again = extended(explained, has_bias=True) @ trained(features[kept], labels[kept]).T
        at = np.arange(len(classes)), classes
        rises.append(log_softmax(others, axis=1)[at] - log_softmax(again, axis=1)[at])
    for one in range(len(classes)):
        assert pearsonr(scores[:, one], np.stack(rises)[:, one]).statistic > at_least


def test_the_strongest_rows_do_not_depend_on_blocks() -> None:
    scores = np.random.default_rng(7).integers(-3, 4, (40, 6)).astype(np.float64)
    scores[3, :] = np.nan
    at = np.arange(100, 140)
    found = Strongest.of(scores[:1], at[:1], 5)
    for start in (1, 2, 14, 39):
        stop = {1: 2, 2: 14, 14: 39, 39: 40}[start]
        found = found.merged(Strongest.of(scores[start:stop], at[start:stop], 5))
    for one in range(6):
        for side, sign in ((0, 1), (1, -1)):
            signed = sign * scores[:, one]
            order = sorted(
                (each for each in range(40) if signed[each] > 0), key=lambda i: (-signed[i], i)
            )
            places, ranks, mine, values = (each.tolist() for each in found.end(side))
            own = [number for number, place in enumerate(places) if place == one]
            assert [ranks[each] for each in own] == list(range(1, len(order[:5]) + 1))
            assert [mine[each] for each in own] == [100 + each for each in order[:5]]
            assert [values[each] for each in own] == [scores[each, one] for each in order[:5]]


def test_a_row_that_nothing_opposes_has_an_empty_end() -> None:
    found = Strongest.of(np.array([[2.0], [1.0]]), np.array([4, 9]), 3)
    assert found.end(0)[2].tolist() == [4, 9]
    assert found.end(1)[2].tolist() == []
