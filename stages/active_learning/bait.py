"""BAIT: rows whose Fisher information at the last layer covers that of all rows.

Source: Ash et al., 2021 (Gone Fishing: Neural Active Learning with Fisher Embeddings).

The Fisher information of a row at the last layer is ``(diag(p) - p pᵀ) ⊗ f fᵀ = V Vᵀ`` with
``V = L ⊗ f`` of ``N - 1`` columns, ``p`` its probabilities and ``f`` its embedding. With
``M = λ I + Σ V Vᵀ`` over the labelled and selected rows and ``F`` the mean over all rows, the rows
are selected that minimise ``tr(M⁻¹ F)``: one after another, twice as many as needed, and then the
rows whose removal costs least are removed again. By Woodbury's identity, adding a row reduces the
trace by ``tr((I + G)⁻¹ T)``, with ``G = Vᵀ M⁻¹ V`` and ``T = Vᵀ M⁻¹ F M⁻¹ V``; both are small
matrices, which are kept for every row and updated after each selection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.memory import free_bytes, gib
from stages.errors import InputError

Array = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]

DAMPING = 1e-2
"""λ, which makes M invertible."""

OVERSAMPLING = 2
"""Rows that are selected for each one that remains."""

MEMORY_SHARE = 0.5
"""Share of the free memory that the matrices may take."""

_BLOCK_ELEMENTS = 2**22
"""Numbers that are held at a time in products of blocks of rows: 32 MiB."""


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors ``V = left ⊗ features`` of rows: ``left [n, N, N - 1]`` and ``features [n, d]``."""

    left: Array
    features: Array

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.int64]) -> Factors:
        """The factors of some rows."""
        return Factors(self.left[rows], self.features[rows])

    def dense(self, row: int) -> Array:
        """``V`` of a row, ``[N d, N - 1]``."""
        rank = self.left.shape[2]
        found = np.einsum("ca,d->cda", self.left[row], self.features[row])
        return np.asarray(found, np.float64).reshape(-1, rank)

    def blocks(self) -> list[slice]:
        """Blocks of rows, for products with ``N²`` or ``N d`` numbers per row."""
        per_row = self.left.shape[1] * max(self.left.shape[1], self.features.shape[1])
        step = max(1, _BLOCK_ELEMENTS // per_row)
        return [slice(at, at + step) for at in range(0, len(self), step)]

    def information(self) -> Array:
        """Sum of ``V Vᵀ`` over the rows, ``[N d, N d]``."""
        size = self.left.shape[1] * self.features.shape[1]
        total = np.zeros((size, size))
        for rows in self.blocks():
            dense = np.einsum("nca,nd->nacd", self.left[rows], self.features[rows])
            flat = dense.reshape(-1, size)
            total += flat.T @ flat
        return total

    def between(self, matrix: Array) -> Array:
        """``Vᵀ matrix V`` of each row, ``[n, N - 1, N - 1]``, for a matrix ``[N d, N d]``."""
        n_classes, width = self.left.shape[1], self.features.shape[1]
        whole = matrix.reshape(n_classes, width, n_classes, width)
        found = np.empty((len(self), self.left.shape[2], self.left.shape[2]))
        for rows in self.blocks():
            features = self.features[rows]
            inner = np.empty((len(features), n_classes, n_classes))
            for one in range(n_classes):
                products = np.tensordot(features, whole[one], axes=(1, 0))
                inner[:, one] = np.einsum("ned,nd->ne", products, features)
            found[rows] = np.einsum("nca,nce,neb->nab", self.left[rows], inner, self.left[rows])
        return found

    def times(self, columns: Array) -> Array:
        """``Vᵀ columns`` of each row, ``[n, N - 1, k]``, for columns ``[N d, k]``."""
        n_classes, width = self.left.shape[1], self.features.shape[1]
        split = columns.reshape(n_classes, width, -1).transpose(1, 0, 2).reshape(width, -1)
        found = np.empty((len(self), self.left.shape[2], columns.shape[1]))
        for rows in self.blocks():
            inner = (self.features[rows] @ split).reshape(-1, n_classes, columns.shape[1])
            found[rows] = np.einsum("nca,nck->nak", self.left[rows], inner)
        return found


def bait(
    probabilities: Numbers, embedding: Numbers, labelled: tuple[Numbers, Numbers], n: int
) -> tuple[NDArray[np.int64], Array]:
    """The rows to label, in the order of selection, and the reduction of the trace by each.

    Args:
        probabilities: of the pool, ``[m, N]``.
        embedding: of the pool, ``[m, d]``.
        labelled: the same two of the labelled rows.
        n: number of rows to select.

    Raises:
        InputError: the matrices would take more than ``MEMORY_SHARE`` of the free memory.
    """
    _check_size(len(embedding), probabilities.shape[1], embedding.shape[1])
    pool, known = factors_of(probabilities, embedding), factors_of(*labelled)
    search = _Search(pool, known)
    n_forward = min(len(pool), OVERSAMPLING * n)
    gains = np.array([search.add() for _ in range(n_forward)])
    rows = np.array(search.rows, np.int64)
    kept = search.narrowed().pruned(n)
    return rows[kept], gains[kept]


def factors_of(probabilities: Numbers, embedding: Numbers) -> Factors:
    """Factors of the Fisher information of rows.

    The matrix ``A`` with columns ``√p_c (e_c - p)`` has ``A Aᵀ = diag(p) - p pᵀ`` and
    ``A √p = 0``. A reflection that moves ``√p`` to the first axis therefore makes its first column
    zero; the others are ``left``.
    """
    p = np.asarray(probabilities, np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    roots = np.sqrt(p)
    columns = np.einsum("nc,kc->nkc", roots, np.eye(p.shape[1])) - np.einsum("nk,nc->nkc", p, roots)
    mirror = roots.copy()
    mirror[:, 0] += 1
    scale = 2 / (mirror**2).sum(axis=1)
    turned = np.einsum("nkc,nc->nk", columns, mirror) * scale[:, None]
    left = columns - np.einsum("nk,nc->nkc", turned, mirror)
    return Factors(left[:, :, 1:], np.asarray(embedding, np.float64))


class _Search:
    """``M⁻¹`` of the labelled and selected rows, and ``G`` and ``T`` of every row of a pool."""

    def __init__(self, pool: Factors, known: Factors) -> None:
        information = known.information()
        self.pool, self.rows = pool, list[int]()
        self.mean = (pool.information() + information) / (len(pool) + len(known))
        damped = information + DAMPING * np.eye(len(information))
        self.inverse: Array = np.asarray(np.linalg.inv(damped), np.float64)
        self.inner = pool.between(self.inverse)
        self.outer = pool.between(self.inverse @ self.mean @ self.inverse)

    def add(self) -> float:
        """Select the row that reduces the trace most; returns by how much."""
        gains = self._changes(1)
        gains[self.rows] = -np.inf
        row = int(gains.argmax())
        self._update(row, 1)
        self.rows.append(row)
        return float(gains[row])

    def narrowed(self) -> _Search:
        """The same search over the selected rows alone, in the order of selection."""
        found = object.__new__(_Search)
        rows = np.array(self.rows, np.int64)
        found.pool, found.rows = self.pool.take(rows), [*range(len(rows))]
        found.mean, found.inverse = self.mean, self.inverse
        found.inner, found.outer = self.inner[rows], self.outer[rows]
        return found

    def pruned(self, n: int) -> list[int]:
        """Remove the rows whose removal increases the trace least, until ``n`` are left."""
        while len(self.rows) > n:
            costs = -self._changes(-1)
            row = min(self.rows, key=lambda each: costs[each])
            self._update(row, -1)
            self.rows.remove(row)
        return self.rows

    def _changes(self, sign: int) -> Array:
        """By how much the trace falls if each row is added (1) or removed (-1), ``[n]``."""
        middle = self._middle(self.inner, sign)
        return np.asarray(np.einsum("nab,nba->n", middle, self.outer), np.float64)

    def _update(self, row: int, sign: int) -> None:
        """Add a row to M, or remove it: ``M⁻¹`` falls by ``U C Uᵀ`` with ``U = M⁻¹ V``."""
        middle = self._middle(self.inner[row], sign)
        columns = self.inverse @ self.pool.dense(row)
        image = self.mean @ columns
        near, far = self.pool.times(columns), self.pool.times(self.inverse @ image)
        scaled = near @ middle
        cross = scaled @ far.swapaxes(1, 2)
        squared = scaled @ (columns.T @ image) @ scaled.swapaxes(1, 2)
        self.inner -= scaled @ near.swapaxes(1, 2)
        self.outer += squared - cross - cross.swapaxes(1, 2)
        self.inverse -= columns @ middle @ columns.T

    @staticmethod
    def _middle(inner: Array, sign: int) -> Array:
        """``C``: the inverse of ``I + G`` to add rows, minus that of ``I - G`` to remove them."""
        found = np.linalg.inv(np.eye(inner.shape[-1]) + sign * inner)
        return np.asarray(sign * found, np.float64)


def _check_size(n_rows: int, n_classes: int, width: int) -> None:
    n_bytes = 8 * (2 * n_rows * n_classes**2 + 4 * (n_classes * width) ** 2)
    if n_bytes > MEMORY_SHARE * (free := free_bytes()):
        raise InputError(
            f"strategy bait: {n_rows:,} rows of {n_classes:,} classes and {width:,} features need "
            f"{gib(n_bytes)}, more than half of the free memory ({gib(free)}): use badge"
        )
