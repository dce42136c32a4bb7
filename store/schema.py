"""What a row holds: arrays with a fixed shape per row, and scalar columns."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from store.errors import FormatError

DTYPES = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (16, 32, 64))
"""What arrays can hold: numbers, never objects, whose bytes could stand for anything."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array of the set: ``[rows, *row_shape]`` of ``dtype``; ``axes`` names its axes."""

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
        """The form in which the plan keeps it."""
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
        """The inverse of ``to_json``; raises ``FormatError`` for what cannot be a schema."""
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
            if all(_is_whole(spec) for spec in arrays) and schema.arrow:
                return schema
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise FormatError(
            "expected a schema of arrays and columns, with names, shapes and types of numbers"
        )

    def array(self, name: str) -> ArraySpec:
        """The array of that name; ``KeyError`` lists those there are."""
        for spec in self.arrays:
            if spec.name == name:
                return spec
        raise KeyError(f"no array '{name}'; there are {', '.join(s.name for s in self.arrays)}")

    @property
    def arrow(self) -> pa.Schema:
        """The columns as an Arrow schema."""
        return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in self.columns])


def _is_whole(spec: ArraySpec) -> bool:
    is_named = isinstance(spec.name, str) and spec.name.isidentifier()  # it names a folder
    is_shaped = all(type(size) is int and size > 0 for size in spec.row_shape)
    has_axes = not spec.axes or len(spec.axes) == len(spec.row_shape)
    return is_named and is_shaped and has_axes and spec.dtype in DTYPES
