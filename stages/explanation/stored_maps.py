"""Read stored maps together with the images that they explain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.workspace import Workspace
from stages.data.class_names import numbers
from stages.data.picked import picked
from stages.data.planned_images import planned_images
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.explanation.questions import Question
from stages.reflection.feature_plan import FeaturePlan, planned_model
from stages.sensing.card import ModelCard
from store.featureset import FeatureSet

BLOCK_ROWS = 16
"""Rows whose images and maps are in memory at once."""


@dataclass(frozen=True)
class Block:
    """Some rows with their maps.

    Attributes:
        rows: their numbers in the set of maps, shape ``(n,)``.
        images: ``[n, H, W, 3]``.
        maps: ``[n, M, h, w]``.
        explained: P of each row, shape ``(n,)``.
        asked: P or Q of each map, shape ``(n, M)``.
        probabilities: what f gives these classes, shape ``(n, M)``.
        samples: the sample columns.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    maps: NDArray[np.float32]
    explained: NDArray[np.int64]
    asked: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    samples: pa.Table


@dataclass(frozen=True)
class StoredMaps:
    """A complete set of maps, and how to open its images."""

    maps: FeatureSet
    source: SourceSpec
    card: ModelCard

    @property
    def params(self) -> dict[str, Any]:  # Any: JSON
        """How the maps were computed, as their plan says."""
        found: dict[str, Any] = self.maps.plan["stage"]["params"]
        return found

    @property
    def questions(self) -> tuple[Question, ...]:
        """The maps of each row."""
        return tuple(Question(**each) for each in self.params["maps"])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the network's classes, else of the data set's, else numbers."""
        return names_of_outputs(self.card, FeaturePlan.of(self.maps.plan))

    def spaced_rows(self, n_rows: int | None) -> NDArray[np.int64]:
        """At most ``n_rows`` evenly spaced rows of those that did not fail, else ``InputError``."""
        usable = np.flatnonzero(self._column("status") == "ok")
        if not len(usable):
            raise InputError(f"{self.maps.name}: every row failed, so there is no map")
        if n_rows is None or n_rows >= len(usable):
            return usable
        return usable[np.arange(n_rows) * len(usable) // n_rows]

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[Block]:
        """The given rows, which ascend, in blocks of at most `BLOCK_ROWS`."""
        source = picked(self.source.open(), self._column("feature_row")[rows])
        for at in range(0, len(rows), BLOCK_ROWS):
            mine = rows[at : at + BLOCK_ROWS]
            read = source.read(at, at + len(mine))
            if read.failed:
                row, reason = min(read.failed.items())
                raise InputError(
                    f"{self.maps.name}: the image of row {mine[row]} could be read when its maps "
                    f"were computed and cannot be read now ({reason}): restore the image"
                )
            yield self._block(mine, read.images)

    def _column(self, name: str) -> NDArray[Any]:
        shards = self.maps.shard_set.shards
        return np.concatenate([self.maps.read_samples(each, [name])[name] for each in shards])

    def _block(self, rows: NDArray[np.int64], images: NDArray[np.uint8]) -> Block:
        size = self.maps.shard_set.chunk_rows
        parts: dict[str, list[NDArray[Any]]] = {}
        tables = []
        for index in np.unique(rows // size).tolist():
            shard = self.maps.shard_set.shards[index]
            wanted = rows[rows // size == index] - shard.start
            tables.append(self.maps.read_samples(shard).take(wanted))
            for name in ("maps", "map_class", "map_probability"):
                parts.setdefault(name, []).append(self.maps.read_chunk(name, shard)[wanted])
        found = {name: np.concatenate(each) for name, each in parts.items()}
        samples = pa.concat_tables(tables)
        return Block(
            rows,
            images,
            found["maps"],
            samples["explained"].to_numpy(),
            found["map_class"],
            found["map_probability"],
            samples,
        )


def open_maps(workspace: Workspace, name: str, dataset: str | None = None) -> StoredMaps:
    """Open a complete set of maps by its name or a part of it, and find its images.

    Raises:
        NotFoundError, IncompleteError: there is no such set, or it is not finished.
        DataNotFoundError, InputError: its images are not found, or have changed.
    """
    maps = workspace.store.open(name, "maps")
    source = planned_images(
        workspace,
        maps.plan["inputs"]["source"],
        dataset,
        lambda: _corruptions(workspace, maps),
    )
    return StoredMaps(maps, source, planned_model(maps.plan))


def _corruptions(workspace: Workspace, maps: FeatureSet) -> tuple[str, ...]:
    """Those of the features, of which the maps may be a part."""
    features = workspace.store.open(maps.plan["inputs"]["features"])
    return tuple(sorted(set(features.samples()["corruption"])))


def names_of_outputs(card: ModelCard, plan: FeaturePlan) -> tuple[str, ...]:
    """Names of the network's classes, else of the data set's, else numbers."""
    named = (card.class_names, plan.source.class_names)
    return next((n for n in named if len(n) == card.n_classes), numbers(card.n_classes))
