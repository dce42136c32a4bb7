"""Introspective features as a lazy dask array, made from features and logits when it is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.reflection.losses import DEFAULT_LOSS, LOSSES, checked_loss
from stages.reflection.rank_one import SCALINGS, last_layer_gradient

if TYPE_CHECKING:
    from dask.array import Array as DaskArray


_BLOCK_BYTES = 2**27
"""Most bytes of gradients in a chunk, unless one row alone has more."""

_ROW_BYTES = 2**20
"""Largest row of chunks of unknown length: they cannot be cut."""


class FactorSet(Protocol):
    """What `reflect` asks of a feature set: two arrays by name, and the plan."""

    @property
    def plan(self) -> Any:  # Any: the plan is JSON
        """What the features were made of; ``plan["inputs"]["model"]["M"]`` is read here."""

    def array(self, name: str) -> DaskArray:
        """The dask array of that name: ``features`` ``(n, d)`` or ``logits`` ``(n, N)``."""


def reflection(
    features: DaskArray,
    logits: DaskArray,
    *,
    loss: str = DEFAULT_LOSS,
    M: float | None = None,
    variant: str = "single-pass",
    scaling: str = "minmax",
) -> DaskArray:
    """Introspective features ``r_x`` of each row, lazily: nothing is read or computed here.

    Args:
        features: input of the last layer, shape ``(n, d)``.
        logits: its output, shape ``(n, N)``.
        loss: a name in `stages.reflection.losses.LOSSES`.
        M: target of the ``-m`` losses.
        variant: ``single-pass``, ``stack`` or ``sum``.
        scaling: ``minmax``, ``maxabs`` or ``none``, each row on its own.

    Returns:
        Shape ``(n, N * d)``, class-major; its row chunks are those of ``features``, cut where they
        would have more than 128 MiB: 16 rows of 1,000 x 2,048. Rows of NaN stay NaN.

    Raises:
        InputError: an unknown name, no ``M`` where one is needed, arrays whose rows differ, or
            long rows in chunks of unknown length.
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
    """`reflection` of a feature set, with the ``M`` of its model where none is given.

    Raises:
        InputError: as `reflection`; also where ``M`` is needed and the model does not know it.
    """
    if M is None and loss in LOSSES and LOSSES[loss].needs_M:
        M = feature_set.plan.get("inputs", {}).get("model", {}).get("M")
        if M is None:
            raise InputError(
                f"loss {loss!r}: expected M, the mean over the training set of the largest logit; "
                "the model of these features has none recorded; pass M=, or take another loss, "
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
    """Both arrays in whole rows, with the same row chunks (chunks of unknown length: as many)."""
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
