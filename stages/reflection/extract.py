"""The extract stage: images in, features and logits out, once and for all.

What introspection needs of an image are two vectors, the input ``f`` and the output ``z`` of the
network's last layer; every gradient of every loss is made of them when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.runner import RunReport, run_map
from pipeline.stage import ShardOutput, Tick
from stages.data.source import ImageSource, Rows, SourceSpec, source_facts
from stages.errors import InputError
from stages.sensing.card import ModelCard, Precision
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema
from store.shards import DEFAULT_SHARD_ROWS, Shard

if TYPE_CHECKING:
    from stages.sensing.model import Sensing

DEFAULT_BATCH_ROWS = 128


@dataclass(frozen=True)
class Extract:
    """Features and logits of every image of ``source`` under the network of ``card``.

    Attributes:
        source: the images; their size must be the network's.
        card, weights: the network.
        precision: of the layers before the last one, "fp32" or "bf16".
        shard_rows: images in a shard, a Zarr chunk and a Parquet part.
        device: where workers compute; "cuda" is the GPU that a worker was given.
        batch_rows: images at once. It is not part of the plan: another batch size changes rows by
            rounding only.
    """

    source: SourceSpec
    card: ModelCard
    weights: str
    precision: Precision = "fp32"
    shard_rows: int = DEFAULT_SHARD_ROWS
    device: str = "cpu"
    batch_rows: int = DEFAULT_BATCH_ROWS

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 1  # raise it when any row comes out otherwise

    def plan(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the rows; opens the source and checks that it fits.

        Raises:
            InputError: the data set has other classes than the network.
        """
        source = self.source.open()
        if source.n_classes != self.card.n_classes:
            raise InputError(
                f"model '{self.card.name}' tells {self.card.n_classes} classes apart, "
                f"{source.name} has {source.n_classes}: choose another --model, or train one with "
                f"`intro-pipe train-sensing --dataset {source.name}`"
            )
        return {
            "name": f"{source.name}-{source.split}@{self.card.name}",
            "stage": {
                "name": self.name,
                "version": self.version,
                "params": {"precision": self.precision},
            },
            "inputs": {"source": source_facts(source), "model": self.card.to_dict()},
            "schema": schema_of(source, self.card).to_json(),
            "n_rows": source.n_rows,
            "shard_rows": self.shard_rows,
        }

    def setup(self, n_threads: int) -> _State:
        """The opened source and the network on its device."""
        import torch

        from stages.sensing.model import load_sensing

        torch.set_num_threads(n_threads)
        sensing = load_sensing(self.card, self.weights, self.device, self.precision)
        return _State(self.source.open(), sensing, self.batch_rows)

    def compute(self, state: _State, shard: Shard, tick: Tick) -> ShardOutput:
        """Features, logits and sample columns of a shard.

        An image that cannot be read becomes a row of NaN with the reason in its ``status``, and is
        listed in the receipt's ``failed``.
        """
        features = np.empty((shard.n_rows, self.card.feature_dim), np.float32)
        logits = np.empty((shard.n_rows, self.card.n_classes), np.float32)
        parts: list[Rows] = []
        crc = 0
        for at, rows in _read_ahead(state.source, shard, state.batch_rows):
            crc = google_crc32c.extend(crc, rows.images.tobytes())
            here = slice(at, at + len(rows.images))
            features[here], logits[here] = state.sense(rows.images)
            parts.append(rows)
            tick(len(rows.images))
        failed = _failed_rows(parts)
        features[list(failed)] = np.nan
        logits[list(failed)] = np.nan
        schema = schema_of(state.source, self.card)
        columns = _columns(shard, parts, logits, failed, schema)
        chunk_rows = min(self.shard_rows, state.source.n_rows)
        arrays = {"features": features, "logits": logits}
        return ShardOutput(
            encode_rows(schema, shard, chunk_rows, arrays, columns),
            {
                "failed": {str(shard.start + row): reason for row, reason in failed.items()},
                "images_crc32c": f"{crc:08x}",
                "device": self.device,
                "batch_rows": state.batch_rows,
            },
        )


def extract(
    store: FeatureStore, stage: Extract, executor: Executor, command: Sequence[str]
) -> tuple[FeatureSet, RunReport]:
    """Make the feature set of a stage, or what is missing of it.

    Raises:
        InputError, StoreError, PipelineError: see the messages; what was finished before is kept.
    """
    plan = stage.plan()
    there = store.find(plan)
    if there is not None and there.shard_set.is_complete():
        return there, RunReport(len(there.shard_set.shards), 0, 0, 0, 0.0)
    executor.check()
    feature_set = store.prepare().create(plan)
    journal = Journal.begin(store.location, command)
    title = f"extract {feature_set.plan['name']}"
    with journal.outcome():
        report = run_map(stage, feature_set.shard_set, executor, journal, title=title)
    return feature_set, report


def schema_of(source: ImageSource, card: ModelCard) -> Schema:
    """The arrays and columns of a data set's features under a network."""
    arrays = (
        ArraySpec("features", (card.feature_dim,), "float32", ("feature",)),
        ArraySpec("logits", (card.n_classes,), "float32", ("class",)),
    )
    columns = (
        ("row", "int64"),
        ("sample_id", "string"),
        *source.extra_columns,
        ("label", "int64"),
        ("prediction", "int64"),
        ("confidence", "float64"),
        ("status", "string"),
    )
    return Schema(arrays, columns)


@dataclass
class _State:
    """A worker's own: the opened source, the network, and the batch size that fits its memory."""

    source: ImageSource
    sensing: Sensing
    batch_rows: int

    def sense(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features and logits of a batch; a batch that the GPU cannot hold is halved for good."""
        import torch

        try:
            device = self.sensing.mean.device
            features, logits = self.sensing(torch.from_numpy(images).to(device))
            return features.cpu().numpy(), logits.cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
            torch.cuda.empty_cache()
            self.batch_rows = half = (len(images) + 1) // 2
            first, second = self.sense(images[:half]), self.sense(images[half:])
            return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _read_ahead(source: ImageSource, shard: Shard, batch_rows: int) -> Iterator[tuple[int, Rows]]:
    """The batches of a shard with their offset in it; the next one is read while one is used."""
    starts = range(shard.start, shard.stop, batch_rows)
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for start in starts:
            future = reader.submit(source.read, start, min(start + batch_rows, shard.stop))
            if ahead is not None:
                yield ahead[0] - shard.start, ahead[1].result()
            ahead = start, future
        if ahead is not None:
            yield ahead[0] - shard.start, ahead[1].result()


def _failed_rows(parts: Sequence[Rows]) -> dict[int, str]:
    """Offset in the shard -> why that image could not be read."""
    failed: dict[int, str] = {}
    at = 0
    for rows in parts:
        failed |= {at + offset: reason for offset, reason in rows.failed.items()}
        at += len(rows.images)
    return failed


def _columns(
    shard: Shard,
    parts: Sequence[Rows],
    logits: NDArray[np.float32],
    failed: dict[int, str],
    schema: Schema,
) -> dict[str, Any]:
    prediction = np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))
    status = np.full(shard.n_rows, "ok", dtype=object)
    status[list(failed)] = list(failed.values())
    made = {
        "row": np.arange(shard.start, shard.stop),
        "prediction": prediction,
        "confidence": _confidence(logits),
        "status": status,
    }
    read = {
        name: np.concatenate([rows.columns[name] for rows in parts])
        for name, _ in schema.columns
        if name not in made
    }
    return {**read, **made}


def _confidence(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest softmax probability, in float64: in float32 sure predictions tie at 1."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidence: NDArray[np.float64] = 1.0 / np.exp(z).sum(axis=1)
    return confidence
