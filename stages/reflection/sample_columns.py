"""The sample columns of a shard: those of the source, and what the logits say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.schema import Schema
from store.shards import Shard

BLOCK_ROWS = 1024


def sample_columns(
    shard: Shard,
    parts: Sequence[Mapping[str, NDArray[Any]]],
    logits: NDArray[np.float32],
    failed: Mapping[int, str],
    schema: Schema,
) -> dict[str, Any]:
    """Columns of a shard by name, in the order of its rows.

    Args:
        shard: the rows.
        parts: columns of the source, of successive rows.
        logits: ``[n, N]``.
        failed: offset in the shard -> why that row failed.
        schema: its columns are those of the source and four that are computed here.
    """
    prediction = logits.argmax(axis=1)
    prediction[list(failed)] = -1
    status = np.full(shard.n_rows, "ok", dtype=object)
    status[list(failed)] = list(failed.values())
    made = {
        "row": np.arange(shard.start, shard.stop),
        "prediction": prediction,
        "confidence": np.concatenate([_confidence(block) for block in _blocks(logits)]),
        "status": status,
    }
    read = {
        name: np.concatenate([columns[name] for columns in parts])
        for name, _ in schema.columns
        if name not in made
    }
    return {**read, **made}


def _blocks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of rows, since intermediate results of all rows may take too much memory."""
    return (values[start : start + BLOCK_ROWS] for start in range(0, len(values), BLOCK_ROWS))


def _confidence(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest softmax probability, in float64, since confident predictions round to 1 in
    float32."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidence: NDArray[np.float64] = 1.0 / np.exp(z).sum(axis=1)
    return confidence
