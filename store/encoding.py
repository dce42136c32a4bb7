"""Encode rows as bytes and decode them: Zarr chunks for arrays, Parquet parts for columns.

Everything happens in memory; other modules decide where the bytes are written.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.errors import ShardSizeError
from store.plan import readable_json
from store.schema import ArraySpec, Schema
from store.shards import Shard
from store.tables import write_table

CHECKSUM_BYTES = 4
"""Size of the CRC-32C at the end of a chunk."""


def chunk_key(spec: ArraySpec, shard: Shard) -> str:
    """Key of the chunk of a shard, e.g. ``features/c/3/0``."""
    return "/".join([spec.name, "c", str(shard.index), *("0" for _ in spec.row_shape)])


def samples_key(shard: Shard) -> str:
    """Key of a shard's sample columns; zero-padded so that names sort in row order."""
    return f"samples/part-{shard.index:05d}.parquet"


def metadata_files(schema: Schema, n_rows: int, shard_rows: int) -> dict[str, bytes]:
    """The ``zarr.json`` of every array, and of the group with their consolidated metadata.

    They depend on the plan alone, so they can be checked and rewritten at any time.
    """
    files: dict[str, bytes] = {}
    nodes: dict[str, Any] = {}
    for spec in schema.arrays:
        nodes[spec.name] = _array_metadata(spec, n_rows, min(shard_rows, n_rows))
        files[f"{spec.name}/zarr.json"] = readable_json(nodes[spec.name])
    group = {
        "attributes": {},
        "zarr_format": 3,
        "node_type": "group",
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": nodes},
    }
    files["zarr.json"] = readable_json(group)
    return files


def encode_chunk(spec: ArraySpec, values: NDArray[Any], chunk_rows: int) -> bytes:
    """Encode one chunk as Zarr does: little-endian values followed by their CRC-32C.

    Args:
        spec: the array that the chunk belongs to.
        values: shape ``(n, *row_shape)``. The last shard of a set may have fewer than
            ``chunk_rows`` rows; it is padded with NaN, since Zarr chunks have a fixed shape.
        chunk_rows: rows of a chunk.
    """
    if values.shape[1:] != spec.row_shape or str(values.dtype) != spec.dtype:
        raise ValueError(
            f"'{spec.name}' is {values.shape} {values.dtype}, "
            f"the schema says (rows, {', '.join(map(str, spec.row_shape))}) {spec.dtype}"
        )
    filler = np.full((chunk_rows - len(values), *spec.row_shape), _fill_value(spec), spec.dtype)
    # Zarr would make three copies, and a chunk may take a large part of a worker's memory.
    parts: list[Any] = [  # Any: mypy does not know that arrays are buffers
        np.ascontiguousarray(part, np.dtype(spec.dtype).newbyteorder("<"))
        for part in (values, filler)
    ]
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return b"".join([*parts, crc.to_bytes(4, "little")])


def decode_chunk(spec: ArraySpec, data: bytes, chunk_rows: int) -> NDArray[Any]:
    """Decode a chunk, including padding rows; raises ``ValueError`` on a checksum mismatch."""
    expected = chunk_rows * spec.row_bytes + CHECKSUM_BYTES
    if len(data) != expected:  # checked before memory is allocated for what the plan claims
        raise ValueError(f"expected {expected} bytes, found {len(data)}")
    n_values = chunk_rows * math.prod(spec.row_shape)
    values = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"), n_values)
    buffer: Any = values  # Any: mypy does not know that arrays are buffers
    found, promised = google_crc32c.value(buffer), int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    if found != promised:
        raise ValueError(f"expected checksum {promised:08x}, found {found:08x}")
    return values.reshape(chunk_rows, *spec.row_shape).astype(spec.dtype)


def encode_samples(schema: Schema, columns: Mapping[str, Any]) -> bytes:
    """Encode the sample columns of one shard as a Parquet file with the schema's types.

    Raises ``ShardSizeError`` if the file would be too large for `read_table`.
    """
    table = pa.table({name: pa.array(columns[name]) for name, _ in schema.columns})
    typed = table.cast(schema.arrow)
    try:
        return write_table(typed)
    except ValueError as error:
        raise ShardSizeError(
            f"the sample columns of a shard: {error}; use smaller shards"
        ) from error


def encode_rows(
    schema: Schema,
    shard: Shard,
    chunk_rows: int,
    arrays: Mapping[str, NDArray[Any]],
    columns: Mapping[str, Any],
) -> dict[str, bytes]:
    """Encode all files of one shard: one chunk per array, and one part of the sample table."""
    for name, values in {**arrays, **columns}.items():
        if len(values) != shard.n_rows:
            raise ValueError(
                f"shard {shard.index}: '{name}' has {len(values)} rows, not {shard.n_rows}"
            )
    files = {
        chunk_key(spec, shard): encode_chunk(spec, arrays[spec.name], chunk_rows)
        for spec in schema.arrays
    }
    files[samples_key(shard)] = encode_samples(schema, columns)
    return files


def _fill_value(spec: ArraySpec) -> float:
    return float("nan") if spec.dtype.startswith("float") else 0


def _array_metadata(spec: ArraySpec, n_rows: int, chunk_rows: int) -> dict[str, Any]:
    """The ``zarr.json`` of an array with one chunk per shard, as Zarr writes it.

    Empty chunks are written too: by default Zarr drops a chunk that holds only the fill value, and
    then a written shard could not be told from a missing one.
    """
    import zarr  # here because reading does not need it, and importing it is slower than a query
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    axes = spec.axes or tuple(f"{spec.name}_{axis}" for axis in range(len(spec.row_shape)))
    zarr.create_array(
        MemoryStore(memory),
        shape=(n_rows, *spec.row_shape),
        chunks=(chunk_rows, *spec.row_shape),
        dtype=spec.dtype,
        fill_value=_fill_value(spec),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        dimension_names=["row", *axes],
        zarr_format=3,
        config={"write_empty_chunks": True},
    )
    metadata: dict[str, Any] = json.loads(memory["zarr.json"].to_bytes())
    return metadata
