"""Schemas: the arrays, with a fixed shape per row, and the scalar columns of a set."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from store.errors import FormatError

DTYPES = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (16, 32, 64))
"""Data types of arrays: numbers only, since pickled objects could run code."""

MAX_ROW_BYTES, MAX_AXES = 2**36, 16
"""Limits of one row of an array, so that the arrays of any plan can be allocated."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array ``[rows, *row_shape]`` of type ``dtype``; ``axes`` names the axes of a row."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str = "float32"
    axes: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Schema:
    """The arrays and the sample columns, in the order in which they are written.

    Columns are ``(name, Arrow type)`` pairs such as ``("label", "int64")``.
    """

    arrays: tuple[ArraySpec, ...]
    columns: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form, as stored in a plan."""
        return {
            "arrays": [
                {
                    "name": spec.name,
                    "row_shape": list(spec.row_shape),
                    "dtype": spec.dtype,
                    "axes": list(spec.axes),
                }
                for spec in self.arrays
            ],
            "columns": [list(column) for column in self.columns],
        }

    @classmethod
    def from_json(cls, value: Any) -> "Schema":
        """The inverse of ``to_json``; raises ``FormatError`` for an invalid schema."""
        try:
            arrays = tuple(
                ArraySpec(
                    spec["name"],
                    tuple(spec["row_shape"]),
                    spec["dtype"],
                    tuple(spec.get("axes", ())),
                )
                for spec in value["arrays"]
            )
            schema = cls(arrays, tuple((name, kind) for name, kind in value["columns"]))
            if all(_is_valid(spec) for spec in arrays) and schema.arrow:
                return schema
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise FormatError(
            "expected a schema of arrays and columns, with names, shapes and types of numbers"
        )

    def array(self, name: str) -> ArraySpec:
        """The array with that name; raises ``KeyError`` listing the existing names."""
        for spec in self.arrays:
            if spec.name == name:
                return spec
        raise KeyError(f"no array '{name}'; there are {', '.join(s.name for s in self.arrays)}")

    @property
    def arrow(self) -> pa.Schema:
        """The columns as an Arrow schema."""
        return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in self.columns])


def _is_valid(spec: ArraySpec) -> bool:
    is_named = isinstance(spec.name, str) and spec.name.isidentifier()  # it names a folder
    is_shaped = all(type(size) is int and size > 0 for size in spec.row_shape)
    has_axes = not spec.axes or len(spec.axes) == len(spec.row_shape)
    if not (is_named and is_shaped and has_axes and spec.dtype in DTYPES):
        return False
    return len(spec.row_shape) <= MAX_AXES and spec.row_bytes <= MAX_ROW_BYTES
