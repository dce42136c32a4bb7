"""The sparse autoencoder of UNIQUE: sigmoid hidden units, a linear decoder, trained with L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stages.quality.patches import Floats

N_HIDDEN = 400
NAMES = ("w1", "b1", "w2", "b2")
BLOCK_PATCHES = 4096
"""Patches whose activations are in memory at once."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """``x' = w2 sigmoid(w1 x + b1) + b2`` on whitened patches.

    Attributes:
        w1: encoder, shape ``(n_hidden, 192)``.
        b1: its bias, shape ``(n_hidden,)``.
        w2: decoder, shape ``(192, n_hidden)``.
        b2: its bias, shape ``(192,)``.
    """

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats

    def hidden(self, patches: Floats) -> Floats:
        """Activations of the hidden units, shape ``(n_hidden, n)``, for patches ``(192, n)``."""
        return sigmoid(self.w1 @ patches + self.b1[:, None])

    def decoded(self, hidden: Floats) -> Floats:
        """Reconstructed patches, shape ``(192, n)``."""
        return self.w2 @ hidden + self.b2[:, None]

    def arrays(self) -> dict[str, Floats]:
        """The weights by name."""
        return {name: getattr(self, name) for name in NAMES}


@dataclass(frozen=True, slots=True)
class Penalties:
    """Terms of the cost beside the reconstruction.

    Attributes:
        sparsity: target of each hidden unit's mean activation.
        sparsity_weight: weight of the divergence from that target.
        weight_decay: weight of half the squared weights of encoder and decoder.
    """

    sparsity: float = 0.035
    sparsity_weight: float = 5.0
    weight_decay: float = 3e-3


def sigmoid(values: Floats) -> Floats:
    """``1 / (1 + exp(-values))``, without overflow."""
    half: Floats = 0.5 * (1 + np.tanh(0.5 * values))
    return half


def initial(n_values: int, n_hidden: int, rng: np.random.Generator) -> Autoencoder:
    """Weights uniform in ``+-sqrt(6 / (n_hidden + n_values + 1))``, and biases of zero."""
    reach = np.sqrt(6 / (n_hidden + n_values + 1))
    w1 = rng.uniform(-reach, reach, (n_hidden, n_values))
    w2 = rng.uniform(-reach, reach, (n_values, n_hidden))
    return Autoencoder(w1, np.zeros(n_hidden), w2, np.zeros(n_values))


def cost_and_gradient(
    model: Autoencoder, patches: Floats, penalties: Penalties
) -> tuple[float, Autoencoder]:
    """The cost of an autoencoder on ``m`` patches, and its gradient to every weight.

    ``1/(2m) sum |x' - x|^2 + beta sum_j KL(rho || rho_j) + lambda/2 (|w1|^2 + |w2|^2)``, where
    ``rho_j`` is the mean activation of hidden unit j (Ng, "Sparse autoencoder", CS294A notes). The
    published code of UNIQUE adds ``lambda w2`` to the gradient but leaves ``|w2|^2`` out of the
    cost; here cost and gradient agree.

    Args:
        model: the weights.
        patches: whitened, shape ``(192, m)``.
        penalties: the other terms.
    """
    rho, beta = penalties.sparsity, penalties.sparsity_weight
    m = patches.shape[1]
    blocks = [slice(start, start + BLOCK_PATCHES) for start in range(0, m, BLOCK_PATCHES)]
    mean = np.sum([model.hidden(patches[:, each]).sum(axis=1) for each in blocks], axis=0) / m
    divergence = rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))
    pull = beta * ((1 - rho) / (1 - mean) - rho / mean)
    cost, gradient = _decay(model, penalties.weight_decay)
    cost += beta * float(divergence.sum())
    for each in blocks:
        cost += _add_block(gradient, model, patches[:, each], pull, m)
    return cost, gradient


def _decay(model: Autoencoder, decay: float) -> tuple[float, Autoencoder]:
    """The term of the weights, and its gradient."""
    squares = float(np.sum(model.w1**2) + np.sum(model.w2**2))
    zeros = np.zeros_like(model.b1), np.zeros_like(model.b2)
    return decay / 2 * squares, Autoencoder(decay * model.w1, zeros[0], decay * model.w2, zeros[1])


def _add_block(
    gradient: Autoencoder, model: Autoencoder, patches: Floats, pull: Floats, m: int
) -> float:
    """Add the gradient of a block of the ``m`` patches in place; returns its part of the cost.

    ``pull`` is the derivative of the sparsity term to each unit's mean activation.
    """
    hidden = model.hidden(patches)
    error = model.decoded(hidden) - patches
    back = (model.w2.T @ error + pull[:, None]) * hidden * (1 - hidden)
    gradient.w1[:] += back @ patches.T / m
    gradient.b1[:] += back.sum(axis=1) / m
    gradient.w2[:] += error @ hidden.T / m
    gradient.b2[:] += error.sum(axis=1) / m
    return float(np.sum(error**2)) / (2 * m)


def trained(
    start: Autoencoder,
    patches: Floats,
    penalties: Penalties,
    n_iterations: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Autoencoder, float]:
    """Minimise the cost with L-BFGS; returns the weights and their cost.

    Args:
        start: initial weights.
        patches: whitened, shape ``(192, m)``.
        penalties: terms of the cost.
        n_iterations: most iterations.
        tick: called after each of them.
    """
    from scipy.optimize import minimize

    shapes = {name: each.shape for name, each in start.arrays().items()}

    def cost(flat: Floats) -> tuple[float, Floats]:
        value, gradient = cost_and_gradient(_folded(flat, shapes), patches, penalties)
        return value, _flat(gradient)

    found = minimize(
        cost,
        _flat(start),
        jac=True,
        method="L-BFGS-B",
        callback=lambda _: tick(),
        options={"maxiter": n_iterations, "maxfun": 2 * n_iterations + 10, "maxcor": 20},
    )
    return _folded(found.x, shapes), float(found.fun)


def _flat(model: Autoencoder) -> Floats:
    return np.concatenate([each.ravel() for each in model.arrays().values()])


def _folded(flat: Floats, shapes: Mapping[str, tuple[int, ...]]) -> Autoencoder:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    return Autoencoder(*(part.reshape(s) for part, s in zip(parts, shapes.values(), strict=True)))
