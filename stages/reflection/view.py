"""Introspective features as a lazy Dask array, computed from features and logits when read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.losses import DEFAULT_LOSS, LOSSES, checked_loss
from stages.reflection.rank_one import SCALINGS, last_layer_gradient

if TYPE_CHECKING:
    from dask.array import Array as DaskArray


_BLOCK_BYTES = 2**27
"""Maximum size of the gradients in a chunk, unless a single row has more."""

_ROW_BYTES = 2**20
"""Maximum size of a row in chunks of unknown length, which cannot be divided."""


class FactorSet(Protocol):
    """The part of a feature set that `reflect` uses: two arrays by name, and the plan."""

    @property
    def plan(self) -> Any:  # Any: the plan is JSON
        """Plan of the features, which records the ``M`` of the model."""

    def array(self, name: str) -> DaskArray:
        """The Dask array of that name: ``features`` ``(n, d)`` or ``logits`` ``(n, N)``."""


def reflection(
    features: DaskArray,
    logits: DaskArray,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    variant: str = "single-pass",
    scaling: str = "minmax",
) -> DaskArray:
    """Introspective features ``r_x`` of each row of two arrays, lazily.

    Args:
        features: input of the last layer, shape ``(n, d)``.
        logits: output of the last layer, shape ``(n, N)``.
        loss, M, variant, scaling: see `reflect`; ``M`` is required by the ``-m`` losses.

    Returns:
        See `reflect`.

    Raises:
        InputError: see `reflect`; also if the arrays have different numbers of rows, or long rows
            in chunks of unknown length.
    """
    import dask.array as da

    checked_loss(loss, M=M, variant=variant)
    if scaling not in SCALINGS:
        raise InputError(f"scaling: expected one of {', '.join(SCALINGS)}; found {scaling!r}")
    size = features.shape[-1] * logits.shape[-1]
    dtype = np.result_type(features.dtype, logits.dtype)
    features, logits = _aligned(features, logits, row_bytes=size * dtype.itemsize)
    return da.map_blocks(
        _dense_block,
        features,
        logits,
        loss=loss,
        M=M,
        variant=variant,
        scaling=scaling,
        chunks=(features.chunks[0], (size,)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )


def reflect(
    feature_set: FactorSet,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    variant: str = "single-pass",
    scaling: str = "minmax",
) -> DaskArray:
    """Introspective features ``r_x`` of a feature set, lazily: the gradient at the last layer.

    Nothing is read until the array is computed.

    Args:
        feature_set: a ``FeatureSet``, or the ``Selection`` that its ``where`` returns.
        loss: a name in `stages.reflection.losses.LOSSES`: ``ce``, ``mse-m``, ``bce``, ``l1``,
            ``l1-m``, ... The target of those that end in ``-m`` is ``M``, of the others 1.
        M: the target of the ``-m`` losses; by default the one that the model records, the mean over
            its training set of the largest logit.
        variant: ``single-pass``, one gradient towards all classes at once; ``stack``, for each
            class its own row of the gradient towards it; ``sum``, all of those gradients summed.
        scaling: ``minmax``, ``maxabs`` or ``none``, applied to each row on its own.

    Returns:
        A dask array of shape ``(n, N * d)`` with element ``class * d + feature``, float32 as the
        stored features. Its row chunks are those of the features, divided where they would take
        more than 128 MiB. Rows of NaN stay NaN.

    Raises:
        InputError: a name is unknown, or the loss needs an ``M`` and the model records none.
        IncompleteError: shards of the feature set are missing.
    """
    if M is None and loss in LOSSES and LOSSES[loss].needs_M:
        M = FeaturePlan.of(feature_set.plan).model.M
        if M is None:
            raise InputError(
                f"loss {loss!r}: expected M, the mean over the training set of the largest logit; "
                "the model of these features has none recorded; pass M=, or use another loss, "
                "e.g. 'bce'"
            )
    return reflection(
        feature_set.array("features"),
        feature_set.array("logits"),
        loss=loss,
        M=M,
        variant=variant,
        scaling=scaling,
    )


def _aligned(
    features: DaskArray, logits: DaskArray, *, row_bytes: int
) -> tuple[DaskArray, DaskArray]:
    """Both arrays in whole rows, with equal row chunks, or as many if their lengths are unknown."""
    if features.ndim != 2 or logits.ndim != 2:
        raise InputError(
            f"reflection: expected features [n, d] and logits [n, N]; "
            f"found {features.shape} and {logits.shape}"
        )
    is_known = not any(math.isnan(rows) for array in (features, logits) for rows in array.chunks[0])
    have = (
        (features.shape[0], logits.shape[0])
        if is_known
        else (
            features.numblocks[0],
            logits.numblocks[0],
        )
    )
    if have[0] != have[1]:
        raise InputError(
            f"reflection: expected as many {'rows' if is_known else 'row chunks'} of features as "
            f"of logits, found {have[0]} and {have[1]}"
        )
    if not is_known:
        if row_bytes > _ROW_BYTES:
            raise InputError(
                f"reflection: a row takes {row_bytes:,} bytes and the chunks of these arrays have "
                "no known length: call compute_chunk_sizes() on both first"
            )
        return features.rechunk({1: -1}), logits.rechunk({1: -1})
    at_once = max(1, _BLOCK_BYTES // row_bytes)
    rows = tuple(
        min(at_once, n_rows - start)
        for n_rows in features.chunks[0]
        for start in range(0, max(n_rows, 1), at_once)
    )
    return features.rechunk({0: rows, 1: -1}), logits.rechunk({0: rows, 1: -1})


def _dense_block(
    features: NDArray[np.floating[Any]],
    logits: NDArray[np.floating[Any]],
    *,
    loss: str,
    M: float | None,
    variant: str,
    scaling: str,
) -> NDArray[np.floating[Any]]:
    gradient = last_layer_gradient(features, logits, loss=loss, M=M, variant=variant)
    return gradient.scaled(scaling).dense()
