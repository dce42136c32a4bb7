"""Scores by the nearest training rows, all features scaled to length 1.

Candidates are found by products in float32. The distance of those whose order rounding could have
changed, by the bound of `_rounding`, is computed again in float64: mostly one row. If there may be
more of them than candidates, the query is compared with all rows in float64. So the result is that
of float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.memory import check_free
from stages.errors import InputError
from stages.reflection.reduction import in_threads
from stages.scores.confidences import energy
from stages.scores.factors import Rows, Score, TrainingRows, row_blocks

if TYPE_CHECKING:
    import torch

Values = NDArray[np.float64]

NEIGHBOUR = 50
"""The neighbour whose distance is the score: 50 on CIFAR-10 (Sun et al. 2022)."""

N_GUIDES = 100
_BANK_SHARE, _SMALLEST_BANK = 0.01, 500
"""Share of the training rows in the bank of `nnguide`, as in OpenOOD, and its minimum size."""

_GROUP_ROWS = 32
_PRODUCTS = 2**22
"""Products that a thread holds at once: 16 MiB in float32, which fits into large caches."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Training rows to search.

    Attributes:
        rows: features as they are, ``[n, d]``.
        lengths: their lengths in float64, ``[n]``.
        unit: rows of length 1 in float32, padded with zeros to a multiple of ``_GROUP_ROWS``.
    """

    rows: Rows
    lengths: Values
    unit: torch.Tensor

    @classmethod
    def of(cls, rows: Rows) -> Bank:
        """Prepare rows ``[n, d]`` for a search."""
        import torch

        lengths = _lengths(rows)
        unit = torch.zeros(-(-len(rows) // _GROUP_ROWS) * _GROUP_ROWS, rows.shape[1])
        for at in row_blocks(len(rows)):
            unit[at.start : at.start + len(rows[at])] = torch.from_numpy(
                _unit(rows[at], lengths[at])
            )
        return cls(rows, lengths, unit)

    def distance(self, queries: Rows, k: int) -> Values:
        """Distance of each query to its ``k``-th nearest row; rows of zeros are at √2."""
        import torch

        n_at_once = max(1, _PRODUCTS // len(self.unit))
        blocks = [queries[at : at + n_at_once] for at in range(0, len(queries), n_at_once)]
        own = local()  # of a thread

        def search(block: Rows) -> Values:
            # New memory costs as much as the products: the kernel clears every page of it.
            if not hasattr(own, "products"):
                own.products = torch.empty(min(n_at_once, len(queries)), len(self.unit))
            return self._distance(k, block, own.products[: len(block)])

        found: Values = np.concatenate([np.empty(0), *in_threads(search, blocks)])
        return found

    def _distance(self, k: int, queries: Rows, products: torch.Tensor) -> Values:
        """Distances of a few queries ``[q, d]``; ``products`` is memory for ``[q, rows]``."""
        unit = _unit(queries, _lengths(queries))
        values, rows = self._candidates(unit, k, products)
        limit = values[:, k - 1 : k]
        doubt = 2 * _rounding(unit.shape[1])
        squares = np.where(values > limit, -np.inf, np.inf)  # surely nearer than the k-th, or not
        close = np.nonzero(np.abs(values - limit) <= doubt)
        squares[close] = self._squares(unit[close[0]], rows[close])
        found: Values = np.sqrt(np.partition(squares, k - 1, axis=1)[:, k - 1])
        is_open = (limit[:, 0] - values[:, -1] <= doubt) & (rows.shape[1] < len(self.rows))
        if is_open.any():
            some = unit[is_open]
            nearest = self._candidates_in_float64(some, rows.shape[1])
            of_all = self._squares(some[:, np.newaxis], nearest)
            found[is_open] = np.sqrt(np.partition(of_all, k - 1, axis=1)[:, k - 1])
        return found

    def _candidates(
        self, unit: Values, k: int, products: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ``c`` largest products of each query with rows, descending, and these rows.

        They lie in the ``c`` groups with the largest maxima.
        """
        import torch

        n_rows, n_groups = len(self.rows), len(self.unit) // _GROUP_ROWS
        torch.mm(torch.from_numpy(unit).float(), self.unit.T, out=products)
        products[:, n_rows:] = -torch.inf
        c = min(k + max(14, k // 4), n_rows)
        by_group = products.view(len(unit), _GROUP_ROWS, n_groups)
        groups = by_group.amax(1).topk(min(c, n_groups), sorted=False).indices
        inside = by_group.gather(2, groups[:, None].expand(-1, _GROUP_ROWS, -1)).flatten(1)
        best = inside.topk(c)
        places, columns = best.indices // groups.shape[1], best.indices % groups.shape[1]
        rows = places * n_groups + groups.gather(1, columns)
        return best.values.numpy(), rows.numpy()

    def _candidates_in_float64(self, unit: Values, c: int) -> NDArray[np.int64]:
        """The ``c`` rows with the largest products in float64, ``[q, c]``."""
        import torch

        queries, values, rows = torch.from_numpy(unit), [], []
        for at in row_blocks(len(self.rows)):
            block = torch.from_numpy(_unit(self.rows[at], self.lengths[at]))
            best = (queries @ block.T).topk(min(c, len(block)))
            values.append(best.values)
            rows.append(best.indices + at.start)
        chosen = torch.cat(values, dim=1).topk(c).indices
        found: NDArray[np.int64] = torch.cat(rows, dim=1).gather(1, chosen).numpy()
        return found

    def _squares(self, unit: Values, rows: NDArray[np.int64]) -> Values:
        """Squared distances of queries ``[..., d]`` to rows of the bank ``[...]``."""
        lengths = self.lengths[rows]
        targets = _unit(self.rows[rows], lengths)
        squares: Values = ((targets - unit) ** 2).sum(axis=-1) + (lengths == 0)
        return squares + ~unit.any(axis=-1)


def fit_neighbours(training: TrainingRows, *, k: int = NEIGHBOUR) -> Score:
    """Minus the distance to the ``k``-th nearest training row, all features of length 1.

    Raises:
        InputError: fewer than ``k`` rows without NaN.
        ResourceError: the rows do not fit into the free memory.
    """
    blocks: list[Rows] = []
    for block in training.blocks():
        if not blocks:
            _check_memory(training.n_rows, block.features.shape[1])
        blocks.append(block.features)
    if (n_rows := sum(map(len, blocks))) < k:
        raise InputError(f"knn: expected at least {k} training rows, found {n_rows}")
    return partial(_neighbour_distance, Bank.of(np.concatenate(blocks)), k)


def fit_nnguide(training: TrainingRows, *, k: int = N_GUIDES, seed: int = 0) -> Score:
    """Energy of a row times the mean of the ``k`` largest ``energy_i cos(f, f_i)`` over a bank.

    The bank is a random share of the training rows, drawn with the seed; if it has fewer than ``k``
    rows, the mean is over all.

    Raises:
        InputError: no training rows.
    """
    n_rows = sum(len(block.labels) for block in training.blocks())
    if not n_rows:
        raise InputError("nnguide: expected training rows without NaN, found none")
    size = min(n_rows, max(_SMALLEST_BANK, round(_BANK_SHARE * n_rows)))
    chosen = np.sort(np.random.default_rng(seed).permutation(n_rows)[:size])
    bank, start = [], 0
    for block in training.blocks():
        own = chosen[(chosen >= start) & (chosen < start + len(block.labels))] - start
        features, logits = block.features[own], block.logits[own]
        unit = _unit(features, _lengths(features))
        bank.append(unit * energy(features, logits)[:, np.newaxis])
        start += len(block.labels)
    return partial(_guided, np.concatenate(bank), min(k, size))


def _neighbour_distance(bank: Bank, k: int, features: Rows, logits: Rows) -> Values:
    del logits
    scores = np.full(len(features), np.nan)
    kept = ~np.isnan(features).any(axis=1)
    scores[kept] = -bank.distance(features[kept], k)
    return scores


def _guided(bank: Values, k: int, features: Rows, logits: Rows) -> Values:
    guidance = np.empty(len(features))
    for at in row_blocks(len(features)):
        products = _unit(features[at], _lengths(features[at])) @ bank.T
        guidance[at] = np.partition(products, -k, axis=1)[:, -k:].mean(axis=1)
    return guidance * energy(features, logits)


def _check_memory(n_rows: int, width: int) -> None:
    """Check that rows fit twice, in blocks and as one array, and once more scaled to length 1."""
    check_free(
        3 * 4 * n_rows * width,
        f"knn: {n_rows:,} training rows of {width:,} features",
        "fit it to fewer rows, or use nnguide, which holds 1 % of them",
    )


def _rounding(width: int) -> float:
    """Bound of the error of a product in float32 of two vectors of length 1 in float64.

    Rounding the vectors costs two units of 2^-24, and summing ``width`` terms in any order as many
    as there are terms (Higham 2002, section 3.1); one more covers products of these.
    """
    return (width + 3) * 2.0**-24


def _lengths(rows: NDArray[Any]) -> Values:
    lengths: Values = np.linalg.norm(rows.astype(np.float64), axis=-1)
    return lengths


def _unit(rows: NDArray[Any], lengths: Values) -> Values:
    """Rows ``[..., d]`` divided by their lengths in float64; rows of zeros stay zero."""
    unit: Values = rows / np.where(lengths == 0, 1.0, lengths)[..., np.newaxis]
    return unit
