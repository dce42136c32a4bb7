"""The nearest rows by cosine, in f or in r_x, by blocks of both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.introspection.reading import Reading
from stages.reflection.rank_one import RankOneGradient
from stages.reflection.reduction import in_threads

_QUERY_ROWS, _TARGET_ROWS = 256, 8192
_SPARE = 8
"""Candidates beyond ``k`` whose cosines are computed exactly."""

Vectors = RankOneGradient[Tensor]


class Near(NamedTuple):
    """The nearest rows of each query, nearest first, ``[n, k]``, and their cosines."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float64]


def unit_vectors(
    reading: Reading, features: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
) -> Vectors:
    """Vectors whose factors have length 1; a factor of zeros stays zero.

    The inner product of two of them is the cosine of the vectors, because
    ``<a ⊗ b, c ⊗ d> = (a·c)(b·d)`` and ``‖a ⊗ b‖ = ‖a‖ ‖b‖``.
    """
    arrays = (
        torch.from_numpy(np.ascontiguousarray(each, np.float32)) for each in (features, logits)
    )
    vectors = reading.vectors(*arrays)
    return RankOneGradient(
        functional.normalize(vectors.delta), functional.normalize(vectors.features)
    )


def nearest_rows(
    queries: Vectors,
    targets: Vectors,
    k: int,
    *,
    is_same_set: bool,
    tick: Callable[[int], None] = lambda _: None,
) -> Near:
    """The ``k`` targets with the largest cosine to each query; all if there are fewer.

    Candidates are found in float32, and their cosines computed again in float64, so that equal rows
    have equal cosines; the first of equal targets is nearer. Which of more than ``k + 8`` equal
    targets are found is undefined.

    Args:
        queries: rows to find neighbours of, from `unit_vectors`.
        targets: rows to search.
        k: number of neighbours.
        is_same_set: whether both are the same rows; then a row is not its own neighbour.
        tick: called with the number of queries of each finished block.
    """
    k = max(0, min(k, len(targets) - is_same_set))
    rows = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k))

    def search(start: int) -> int:
        block = queries.take(slice(start, start + _QUERY_ROWS))
        found = _candidates(block, targets, k + _SPARE, start if is_same_set else None)
        at = slice(start, start + len(block))
        rows[at], cosines[at] = _ordered(block, targets, found, k)
        return len(block)

    for n_rows in in_threads(search, range(0, len(queries) if k else 0, _QUERY_ROWS)):
        tick(n_rows)
    return Near(rows, cosines)


def _candidates(block: Vectors, targets: Vectors, n: int, start: int | None) -> Tensor:
    """The ``n`` best targets of each query in float32; those of the same set begin at ``start``."""
    values, rows = [], []
    for first in range(0, len(targets), _TARGET_ROWS):
        part = targets.take(slice(first, first + _TARGET_ROWS))
        products = block.inner_products(part)
        if start is not None:
            own = torch.arange(start, start + len(block)) - first
            here = (own >= 0) & (own < len(part))
            products[here, own[here]] = -torch.inf
        best = products.topk(min(n, len(part)))
        values.append(best.values)
        rows.append(best.indices + first)
    n_all = len(targets) - (start is not None)
    chosen = torch.cat(values, dim=1).topk(min(n, n_all)).indices
    return torch.cat(rows, dim=1).gather(1, chosen)


def _ordered(
    block: Vectors, targets: Vectors, found: Tensor, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``k`` best candidates by their cosines in float64, ties by row."""
    rows = found.sort(dim=1).values
    cosines = _products(block.delta, targets.delta, rows)
    cosines *= _products(block.features, targets.features, rows)
    order = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    return rows.gather(1, order).numpy(), cosines.gather(1, order).numpy()


def _products(queries: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Cosines of each query with its candidates, in float64."""
    ours = functional.normalize(queries.double())
    theirs = functional.normalize(targets[rows].double(), dim=2)
    return torch.einsum("qd,qcd->qc", ours, theirs)
