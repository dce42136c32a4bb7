"""Gradients at the last layer, represented by their two factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal

from array_api_compat import array_namespace

from stages.errors import InputError
from stages.reflection.losses import DEFAULT_LOSS, ArrayT, delta

Scaling = Literal["minmax", "maxabs", "none"]
SCALINGS: tuple[Scaling, ...] = ("minmax", "maxabs", "none")

_PROJECTED = 2**13
"""Products with a class's columns that `project` holds per row, unless one output has more."""


@dataclass(frozen=True, eq=False)
class RankOneGradient(Generic[ArrayT]):
    """One gradient per row, ``r = δ ⊗ f (+ k)``; only `dense` materialises it.

    Rows are samples; there are ``N`` classes and ``d`` features. A dense gradient is class-major,
    as torch's flattened ``weight.grad``: index ``class * d + feature``. A NaN in a row makes the
    results of that row NaN and affects no other row. Arrays are numpy's or torch's, on one device.

    Args:
        delta: derivative of the loss to the logits, shape ``(n, N)``.
        features: input of the last layer, shape ``(n, d)``.
        offset: a constant ``k`` per row, shape ``(n,)``, added to every element; ``None`` means
            zero. The scaling ``minmax`` introduces it.
    """

    delta: ArrayT
    features: ArrayT
    offset: ArrayT | None = None

    def __post_init__(self) -> None:
        d, f = tuple(self.delta.shape), tuple(self.features.shape)
        k = None if self.offset is None else tuple(self.offset.shape)
        if len(d) != 2 or len(f) != 2 or d[0] != f[0] or k not in (None, d[:1]):
            raise InputError(
                f"gradient: expected delta [n, N], features [n, d] and offset [n]; "
                f"found {d}, {f} and {k}"
            )

    def __len__(self) -> int:
        return int(self.delta.shape[0])

    @property
    def n_classes(self) -> int:
        """``N``, the number of rows of the last layer's weight."""
        return int(self.delta.shape[1])

    @property
    def feature_dim(self) -> int:
        """``d``, the number of columns of the last layer's weight."""
        return int(self.features.shape[1])

    @property
    def size(self) -> int:
        """``N * d``, the length of one gradient."""
        return self.n_classes * self.feature_dim

    def take(self, rows: Any) -> RankOneGradient[ArrayT]:  # Any: slice, index or mask array
        """Select rows by a slice, an array of positions, or a mask."""
        return RankOneGradient(
            self.delta[rows],
            self.features[rows],
            None if self.offset is None else self.offset[rows],
        )

    def dense(self) -> ArrayT:
        """The materialised gradients, shape ``(n, N * d)``."""
        product = self.delta[:, :, None] * self.features[:, None, :]
        flat: ArrayT = product.reshape((product.shape[0], self.size))
        return flat if self.offset is None else flat + self.offset[:, None]

    def extremes(self) -> tuple[ArrayT, ArrayT]:
        """Smallest and largest element of each gradient, each ``(n,)``, in ``O(N + d)`` per row.

        The product of two intervals takes its extremes at products of their ends.
        """
        xp = array_namespace(self.delta)
        corners = [
            end_of_delta(self.delta, axis=1) * end_of_features(self.features, axis=1)
            for end_of_delta in (xp.min, xp.max)
            for end_of_features in (xp.min, xp.max)
        ]
        ends = xp.stack(corners)
        low: ArrayT = xp.min(ends, axis=0)
        high: ArrayT = xp.max(ends, axis=0)
        return (low, high) if self.offset is None else (low + self.offset, high + self.offset)

    def scaled(self, scaling: str = "minmax") -> RankOneGradient[ArrayT]:
        """Scale each gradient to [-1, 1], keeping the factors.

        - ``minmax``: the smallest element becomes -1, the largest 1. This is the reading of
          "scaled between [-1, 1]" that fills the range even if all elements have the same sign.
        - ``maxabs``: divides by the largest magnitude; zero stays zero.
        - ``none``: no scaling.

        A gradient whose elements are all equal becomes zeros under ``minmax`` (to avoid overflow,
        ranges below the square root of the dtype's smallest normal number count as equal); a zero
        gradient stays zero under ``maxabs``.

        Raises:
            InputError: an unknown scaling.
        """
        if scaling == "none":
            return self
        if scaling == "minmax":
            return self._min_max_scaled()
        if scaling == "maxabs":
            return self._max_abs_scaled()
        raise InputError(f"scaling: expected one of {', '.join(SCALINGS)}; found {scaling!r}")

    def _min_max_scaled(self) -> RankOneGradient[ArrayT]:
        # r' = a r + k with a = 2 / (hi - lo) and k = -1 - a lo
        xp = array_namespace(self.delta)
        plain = RankOneGradient(self.delta, self.features)
        low, high = plain.extremes()
        span = high - low
        # A NaN compares as False, so failed rows do not count as flat.
        is_flat = span <= xp.finfo(span.dtype).smallest_normal ** 0.5
        slope: ArrayT = xp.where(is_flat, 0.0 * span, 2 / xp.where(is_flat, 1.0 + 0 * span, span))
        offset: ArrayT = xp.where(is_flat, 0.0 * span, -1 - slope * low)
        return RankOneGradient(slope[:, None] * self.delta, self.features, offset)

    def _max_abs_scaled(self) -> RankOneGradient[ArrayT]:
        if self.offset is not None:
            raise InputError("scaling 'maxabs': expected an unscaled gradient, found a scaled one")
        return RankOneGradient(_over_largest(self.delta), _over_largest(self.features))

    def inner_products(self, other: RankOneGradient[ArrayT]) -> ArrayT:
        """``<r_i, s_j>`` for all pairs of rows, shape ``(n, m)``.

        ``<a ⊗ b, c ⊗ d> = (a·c)(b·d)``; the offsets add the products with the rows' sums.
        """
        products = (self.delta @ other.delta.T) * (self.features @ other.features.T)
        if other.offset is not None:
            products = products + self._sums_of_products()[:, None] * other.offset[None, :]
        if self.offset is not None:
            products = products + self.offset[:, None] * other._sums_of_products()[None, :]
        if self.offset is not None and other.offset is not None:
            products = products + self.offset[:, None] * other.offset[None, :] * self.size
        return products

    def squared_norms(self) -> ArrayT:
        """``‖r‖²`` of each row, shape ``(n,)``: ``‖δ‖² ‖f‖²``, plus the share of the offset."""
        xp = array_namespace(self.delta)
        squares: ArrayT = xp.sum(self.delta**2, axis=1) * xp.sum(self.features**2, axis=1)
        if self.offset is None:
            return squares
        cross = 2 * self.offset * self._sums_of_products() + self.size * self.offset**2
        total: ArrayT = xp.clip(squares + cross, 0.0, None)
        return total

    def norms(self) -> ArrayT:
        """Euclidean length of each gradient, shape ``(n,)``."""
        lengths: ArrayT = array_namespace(self.delta).sqrt(self.squared_norms())
        return lengths

    def squared_distance_blocks(
        self, other: RankOneGradient[ArrayT] | None = None, *, block_rows: int = 1024
    ) -> Iterator[tuple[int, ArrayT]]:
        """Yield ``‖r_i - s_j‖²`` as ``(first row, block [<= block_rows, m])``.

        Args:
            other: gradients to compare with; by default these themselves.
            block_rows: rows of ``self`` per block.
        """
        to = self if other is None else other
        xp = array_namespace(self.delta)
        norms_to = to.squared_norms()
        for start in range(0, len(self), block_rows):
            block = self.take(slice(start, start + block_rows))
            squares = block.squared_norms()[:, None] + norms_to[None, :]
            yield start, xp.clip(squares - 2 * block.inner_products(to), 0.0, None)

    def squared_distances(
        self, other: RankOneGradient[ArrayT] | None = None, *, block_rows: int = 1024
    ) -> ArrayT:
        """``‖r_i - s_j‖²`` for all pairs of rows, shape ``(n, m)``; for large n use the blocks."""
        blocks = [block for _, block in self.squared_distance_blocks(other, block_rows=block_rows)]
        joined: ArrayT = array_namespace(self.delta).concat(blocks, axis=0)
        return joined

    def project(self, matrix: ArrayT) -> ArrayT:
        """``matrix @ r`` for each row, without materialising ``r``.

        ``Σ_c δ_c (matrix[:, c, :] f) + k Σ matrix``, with the matrix in class-major order.

        Args:
            matrix: shape ``(h, N * d)``, e.g. the first layer of a head.

        Returns:
            Shape ``(n, h)``. Needs memory for ``n * max(N, 8192)`` numbers, whatever ``h`` and
            ``d`` are.
            ``d`` are.
        """
        h = int(matrix.shape[0])
        if tuple(matrix.shape) != (h, self.size):
            raise InputError(
                f"projection: expected a matrix [h, {self.size}], found {tuple(matrix.shape)}"
            )
        at_once = self.outputs_at_once
        blocks = [self._projected(matrix[at : at + at_once]) for at in range(0, h, at_once)]
        projected: ArrayT = array_namespace(self.delta).concat(blocks, axis=1)
        return projected

    def weighted_sums(self, weights: ArrayT) -> ArrayT:
        """``Σ_i weights[i, j] r_i``, the derivative of `project` with respect to its matrix.

        Args:
            weights: shape ``(n, h)``.

        Returns:
            Shape ``(h, N * d)``. Needs additional memory for ``n * h * N`` numbers: pass at most
            `outputs_at_once` columns of the weights.
        """
        n, h = weights.shape
        by_class = (weights[:, :, None] * self.delta[:, None, :]).reshape((n, h * self.n_classes))
        sums: ArrayT = (by_class.T @ self.features).reshape((h, self.size))
        return sums if self.offset is None else sums + (weights.T @ self.offset)[:, None]

    @property
    def outputs_at_once(self) -> int:
        """Number of outputs that `project` computes at once."""
        return max(1, _PROJECTED // self.n_classes)

    def _projected(self, matrix: ArrayT) -> ArrayT:
        h = int(matrix.shape[0])
        by_class = matrix.reshape((h * self.n_classes, self.feature_dim))
        # Not len(): torch.export would treat the number of rows as a constant.
        n = self.delta.shape[0]
        per_class = (self.features @ by_class.T).reshape((n, h, self.n_classes))
        projected: ArrayT = (per_class @ self.delta[:, :, None])[:, :, 0]
        if self.offset is None:
            return projected
        sums = array_namespace(matrix).sum(matrix, axis=1)
        shifted: ArrayT = projected + self.offset[:, None] * sums[None, :]
        return shifted

    def _sums_of_products(self) -> ArrayT:
        """Sum over the elements of ``δ ⊗ f``, shape ``(n,)``."""
        xp = array_namespace(self.delta)
        sums: ArrayT = xp.sum(self.delta, axis=1) * xp.sum(self.features, axis=1)
        return sums


def last_layer_gradient(
    features: ArrayT,
    logits: ArrayT,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    variant: str = "single-pass",
) -> RankOneGradient[ArrayT]:
    """``dJ/dW`` of the last layer ``z = W f + b`` for each row (Eqs. 5 and 6 of the paper).

    Args:
        features: input of the last layer, shape ``(n, d)``.
        logits: its output, shape ``(n, N)``.
        loss: a name in `stages.reflection.losses.LOSSES`.
        M: target of the ``-m`` losses.
        variant: ``single-pass``, ``stack`` or ``sum``.
    """
    return RankOneGradient(delta(loss, logits, M=M, variant=variant), features)


def _over_largest(rows: ArrayT) -> ArrayT:
    """Divide rows by their largest magnitude; rows of zeros stay zeros."""
    xp = array_namespace(rows)
    largest = xp.max(xp.abs(rows), axis=1, keepdims=True)
    scaled: ArrayT = rows / xp.where(largest == 0, 1 + largest, largest)
    return scaled
