"""Groups of rows, from Arrow tables and without pandas.

Importing pandas takes longer than a query over a million rows; `stages.reflection.reduction` has
the same for data frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import InputError
from stages.reflection.reduction import Group
from store.featureset import FeatureSet

Rows = NDArray[np.bool_] | NDArray[np.int64] | slice
"""A selection of rows: flags, numbers, or a slice."""

CELLS = ("corruption", "severity")
"""Columns whose values are the cells of a corrupted set."""


def cell_columns(feature_set: FeatureSet, by: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of the columns ``by``, by default `CELLS`, that a set has, each once."""
    known = [name for name, _ in feature_set.schema.columns]
    return tuple(dict.fromkeys(name for name in by or CELLS if name in known))


def check_columns(verb: str, sets: Sequence[FeatureSet], by: Sequence[str]) -> None:
    """Raise ``InputError`` if a column of ``--by`` is in none of the sets."""
    known = dict.fromkeys(name for each in sets for name, _ in each.schema.columns)
    if unknown := [name for name in by if name not in known]:
        raise InputError(
            f"{verb} {sets[0].name}: unknown column '{unknown[0]}' in --by; there are: "
            f"{', '.join(known)}"
        )


def group_codes(
    samples: pa.Table, by: Sequence[str], keep: Rows = slice(None)
) -> tuple[NDArray[np.int64], list[Group]]:
    """The index of each row's group, shape ``(n,)``, and the groups; only of the rows to keep.

    All rows are one group if there are no grouping columns. Missing values become ``math.nan``
    itself, so that groups of several shards match.

    >>> codes, groups = group_codes(pa.table({"kind": ["b", "a", "b"]}), ["kind"])
    >>> codes.tolist(), groups
    ([0, 1, 0], [('b',), ('a',)])
    """
    codes = np.zeros(samples.num_rows, np.int64)
    groups: list[Group] = [()]
    for column in by:
        own, values = _encoded(samples[column])
        codes, of_pair = _distinct(codes * len(values) + own, len(groups) * len(values))
        pairs = [divmod(int(pair), len(values)) for pair in of_pair]
        groups = [(*groups[before], values[at]) for before, at in pairs]
    codes, kept = _distinct(codes[keep], len(groups))
    return codes, [groups[at] for at in kept]


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of numbers without nulls, shape ``(n,)``.

    ``column.to_numpy()`` would import pandas.
    """
    return np.from_dlpack(column.combine_chunks())


def _encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """The index of each row's value, and the distinct values."""
    if len(column) and column.null_count == 0 and column.num_chunks == 1:
        (chunk,) = column.chunks
        if pa.types.is_dictionary(chunk.type):
            values = chunk.dictionary.to_pylist()
            if len({None, *values}) == len(values) + 1:  # no file has to have each value once
                return np.from_dlpack(chunk.indices).astype(np.int64), values
        elif pa.types.is_signed_integer(chunk.type):
            found = np.from_dlpack(chunk).astype(np.int64)
            low = int(found.min())
            codes, distinct = _distinct(found - low, int(found.max()) - low + 1)
            return codes, (distinct + low).tolist()
    import pyarrow.compute as pc  # importing it takes as long as reading 20 shards

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    values = [nan if v is None or v != v else v for v in encoded.dictionary.to_pylist()]
    return np.from_dlpack(encoded.indices).astype(np.int64), values


def _distinct(
    codes: NDArray[np.int64], n_codes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes below ``n_codes`` renumbered by appearance in ascending order, and the old codes."""
    if n_codes > max(1024, len(codes)):
        found, renumbered = np.unique(codes, return_inverse=True)
        return renumbered, found
    found = np.flatnonzero(np.bincount(codes, minlength=n_codes))
    number = np.zeros(n_codes, np.int64)
    number[found] = np.arange(len(found))
    return number[codes], found
