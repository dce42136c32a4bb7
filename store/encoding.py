"""Rows to bytes and back: Zarr chunks for vectors, Parquet parts for scalars.

All of it in memory; where the bytes go, and when, is the store's business.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from store.plan import readable_json
from store.schema import ArraySpec, Schema
from store.shards import Shard

CHECKSUM_BYTES = 4
"""Of the CRC-32C at the end of a chunk."""


def chunk_key(spec: ArraySpec, shard: Shard) -> str:
    """Where the chunk of a shard lies: ``features/c/3/0``."""
    return "/".join([spec.name, "c", str(shard.index), *("0" for _ in spec.row_shape)])


def samples_key(shard: Shard) -> str:
    """Where the sample columns of a shard lie; zero-padded, so that names sort as rows do."""
    return f"samples/part-{shard.index:05d}.parquet"


def metadata_files(schema: Schema, n_rows: int, shard_rows: int) -> dict[str, bytes]:
    """The ``zarr.json`` of every array, and of the group with a consolidated copy of them.

    They follow from the plan alone, so that they can be checked and written again at any time.
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
    """One whole chunk, as Zarr writes it: little-endian bytes and their CRC-32C.

    ``values`` is ``[n, *row_shape]``; the last shard of a set may be shorter than ``chunk_rows``
    and is filled up with NaN, since a Zarr chunk always has its full shape.
    """
    if values.shape[1:] != spec.row_shape or str(values.dtype) != spec.dtype:
        raise ValueError(
            f"'{spec.name}' is {values.shape} {values.dtype}, "
            f"the schema says (rows, {', '.join(map(str, spec.row_shape))}) {spec.dtype}"
        )
    filler = np.full((chunk_rows - len(values), *spec.row_shape), _fill_value(spec), spec.dtype)
    # Zarr would make three copies on the way, and a chunk may be a good part of a worker's memory.
    parts: list[Any] = [  # Any: arrays, which mypy does not know to be buffers
        np.ascontiguousarray(part, np.dtype(spec.dtype).newbyteorder("<"))
        for part in (values, filler)
    ]
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return b"".join([*parts, crc.to_bytes(4, "little")])


def decode_chunk(spec: ArraySpec, data: bytes, chunk_rows: int) -> NDArray[Any]:
    """The inverse of ``encode_chunk``, filling included; ``ValueError`` on a bad checksum."""
    expected = chunk_rows * spec.row_bytes + CHECKSUM_BYTES
    if len(data) != expected:  # found out before room is made for what the plan promises
        raise ValueError(f"expected {expected} bytes, found {len(data)}")
    n_values = chunk_rows * math.prod(spec.row_shape)
    values = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"), n_values)
    buffer: Any = values  # which mypy does not know an array to be
    found, promised = google_crc32c.value(buffer), int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    if found != promised:
        raise ValueError(f"expected checksum {promised:08x}, found {found:08x}")
    return values.reshape(chunk_rows, *spec.row_shape).astype(spec.dtype)


def encode_samples(schema: Schema, columns: Mapping[str, Any]) -> bytes:
    """The sample columns of one shard as a Parquet file with the schema's types."""
    table = pa.table({name: pa.array(columns[name]) for name, _ in schema.columns})
    sink = io.BytesIO()
    pq.write_table(table.cast(schema.arrow), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode_samples(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The inverse of ``encode_samples``; an Arrow error or ``OSError`` on a bad checksum.

    With ``columns`` those alone are read and checked, in that order.
    """
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    if columns is not None and (missing := set(columns) - set(file.schema_arrow.names)):
        raise ValueError(f"there is no column {', '.join(sorted(missing))}")
    table = file.read() if columns is None else file.read(list(columns)).select(list(columns))
    return table.replace_schema_metadata()  # what it says of pandas is not for us to obey


def encode_rows(
    schema: Schema,
    shard: Shard,
    chunk_rows: int,
    arrays: Mapping[str, NDArray[Any]],
    columns: Mapping[str, Any],
) -> dict[str, bytes]:
    """All files of one shard: a chunk for every array, a part of the sample table."""
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

    Empty chunks are written too: Zarr's default drops a chunk that holds only the fill value, and
    then a written shard and a missing one look the same.
    """
    import zarr  # here, since reading does without it: it takes longer to import than a query
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
