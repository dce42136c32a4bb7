"""Predictions from several sets of weights: their mean, and the information that the label gives.

With ``p_s`` the prediction under weights ``s``, the mutual information between label and weights is
``H(mean_s p_s) - mean_s H(p_s)`` in nats (Houlsby et al. 2011): 0 where all weights agree, at most
the entropy of the mean. Random numbers depend on the seed and the row alone, never on how rows are
split into shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from stages.introspection.laplace import Posterior, probit_logits
from stages.judging.judgement import Predictions, Rows
from stages.metrics.finite import finite_rows
from stages.reflection.losses import softmax
from stages.sensing.stored_layer import StoredLayer

Values = NDArray[np.float64]

BLOCK_ROWS = 64
"""Rows whose random numbers are drawn together: 64 rows of 2,048 features take 51 MB for 100 masks
in float32."""

_NUMBERS = 2**22
"""Noise of the rows that are computed at once: its float64 copies take 32 MiB each."""


def mixed(samples: Iterable[Values]) -> Predictions:
    """Mean of predictions ``[n, N]`` and their mutual information; ``samples`` has at least one."""
    total, entropy, n_samples = None, None, 0
    for p in samples:
        own = entr(p).sum(axis=1)
        total = p if total is None else total + p
        entropy = own if entropy is None else entropy + own
        n_samples += 1
    assert total is not None  # the callers check
    assert entropy is not None
    mean = total / n_samples
    information = entr(mean).sum(axis=1) - entropy / n_samples
    return Predictions(mean, np.maximum(information, 0.0))  # below 0 by rounding only


@dataclass(frozen=True, eq=False)
class LaplaceSampling:
    """A judge that samples logits from a Laplace approximation.

    Attributes:
        posterior: over the weights of f's last layer.
        n_samples: logits per row, from which the mutual information follows.
        draw_seed: seed of the samples.
        is_probit: whether the probabilities are those of `probit_logits`, which need no samples;
            else the mean over the samples.
    """

    label: str
    posterior: Posterior
    n_samples: int
    draw_seed: int
    is_probit: bool
    seed: int = 0

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows."""
        return _in_blocks(rows, self._block, self._draw, self.draw_seed)

    def _draw(self, rng: np.random.Generator, rows: Rows) -> NDArray[np.float32]:
        return rng.standard_normal(
            (BLOCK_ROWS, self.n_samples, rows.logits.shape[1]), dtype=np.float32
        )

    def _block(self, f: Values, z: Values, noise: NDArray[np.float32]) -> Predictions:
        found = _over_samples(z[:, np.newaxis] + self.posterior.deviations(f, noise))
        if not self.is_probit:
            return found
        scaled = probit_logits(z, self.posterior.variances(f))
        return Predictions(_probabilities(scaled), found.information)


@dataclass(frozen=True, eq=False)
class DropoutSampling:
    """A judge with dropout in front of f's last layer (Gal & Ghahramani 2016).

    Features are set to 0 with a probability of ``rate`` and else divided by ``1 - rate``.
    """

    label: str
    layer: StoredLayer
    rate: float
    n_samples: int
    draw_seed: int
    seed: int = 0

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows."""
        return _in_blocks(rows, self._block, self._draw, self.draw_seed)

    def _draw(self, rng: np.random.Generator, rows: Rows) -> NDArray[np.float32]:
        return rng.random((BLOCK_ROWS, self.n_samples, rows.features.shape[1]), dtype=np.float32)

    def _block(self, f: Values, z: Values, noise: NDArray[np.float32]) -> Predictions:
        del z
        kept = f[:, np.newaxis] * (noise >= self.rate) / (1 - self.rate)
        bias = 0.0 if self.layer.bias is None else self.layer.bias
        return _over_samples(kept @ self.layer.weight.T + bias)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A judge that averages the probabilities of its members (Lakshminarayanan et al. 2017).

    Attributes:
        members: each maps rows to probabilities ``[n, N]``.
    """

    label: str
    members: tuple[Callable[[Rows], NDArray[Any]], ...]
    seed: int = 0

    def answer(self, rows: Rows) -> Predictions:
        """Predict rows."""
        return mixed(np.asarray(member(rows), np.float64) for member in self.members)


def _in_blocks(
    rows: Rows,
    predict: Callable[[Values, Values, NDArray[np.float32]], Predictions],
    draw: Callable[[np.random.Generator, Rows], NDArray[np.float32]],
    seed: int,
) -> Predictions:
    """Predict blocks of rows, each with random numbers of its own; rows of NaN stay NaN."""
    shard, is_finite = rows.shard, finite_rows(rows.features, rows.logits)
    probabilities = np.full(rows.logits.shape, np.nan)
    information = np.full(len(is_finite), np.nan)
    for block in range(shard.start // BLOCK_ROWS, -(-shard.stop // BLOCK_ROWS)):
        first = block * BLOCK_ROWS
        places = np.arange(max(first, shard.start), min(first + BLOCK_ROWS, shard.stop))
        places = places[is_finite[places - shard.start]]
        if not len(places):
            continue
        noise = draw(np.random.default_rng([seed, block]), rows)
        n_at_once = max(1, _NUMBERS // noise[0].size)
        for some in (places[at : at + n_at_once] for at in range(0, len(places), n_at_once)):
            at = some - shard.start
            f, z = (each[at].astype(np.float64) for each in (rows.features, rows.logits))
            found = predict(f, z, noise[some - first])
            probabilities[at], information[at] = found.probabilities, found.information
    return Predictions(probabilities, information)


def _over_samples(logits: Values) -> Predictions:
    """Mean prediction and mutual information of logits ``[n, samples, N]``."""
    return mixed(_probabilities(logits[:, at]) for at in range(logits.shape[1]))


def _probabilities(logits: Values) -> Values:
    return softmax(logits).astype(np.float64, copy=False)
