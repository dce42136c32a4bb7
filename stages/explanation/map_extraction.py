"""Compute the maps of chosen rows, a map over shards like the extraction of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.work import ShardOutput, Tick
from stages.data.picked import picked
from stages.data.registry import SourceSpec
from stages.data.source import check_planned
from stages.errors import InputError
from stages.explanation.questions import LABEL, PREDICTION, Question, asked_classes
from stages.metrics.finite import why_not_finite
from stages.reflection.losses import softmax
from stages.scores.chosen_rows import ChosenRows
from stages.sensing.card import ModelCard
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.plan import Plan
from store.schema import ArraySpec, Schema
from store.shards import Shard

if TYPE_CHECKING:
    from stages.explanation.target_layer import TargetLayer
    from stages.reflection.flow import Flow

VOICE_COLUMNS = ("voice_mean", "voice_snr", "voice_iou")

LOGITS_TOLERANCE = 1e-2
"""Largest difference of recomputed logits from the stored ones, relative to the largest."""

BF16_TOLERANCE = 0.3
"""The same if the stored ones were computed in bf16."""

OF_FEATURES = ("row", "sample_id", "label", "prediction", "confidence", "status")
"""Columns of a feature set that a set of maps has under these names or in its own place."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of some rows of a feature set.

    Attributes:
        source: all images of the feature set; their size must be the network's.
        card, weights: the network.
        store, features: location of the store, and full name of the feature set.
        chosen: the rows to explain, and what H predicts for them.
        questions: the maps of each row.
        of_class: the explained class P: a number, or `PREDICTION` or `LABEL` of the row.
        layer: the layer that maps are made of.
        in_closed_form: whether f is the mean of that layer's output.
        shard_rows: rows in a shard.
        device: device of the workers.
        batch_rows: images per forward pass.
        n_images: number of images that fit into the memory of a worker at once.
    """

    source: SourceSpec
    card: ModelCard
    weights: str
    store: str
    features: str
    chosen: ChosenRows
    questions: tuple[Question, ...]
    of_class: str | int
    layer: TargetLayer
    in_closed_form: bool
    shard_rows: int
    device: str = "cpu"
    batch_rows: int = 1
    n_images: int = 1

    name: ClassVar[str] = "explain"
    version: ClassVar[int] = 1  # raise it when any map changes
    rows: ClassVar[str] = "images"

    @property
    def has_voice(self) -> bool:
        """Whether the maps have summary numbers."""
        return any(each.method == "voice" for each in self.questions)

    def schema(self, feature_set: FeatureSet) -> Schema:
        """The arrays and columns of the set."""
        n_maps = len(self.questions)
        arrays = (
            ArraySpec("maps", (n_maps, *self.layer.grid), "float32", ("map", "y", "x")),
            ArraySpec("map_class", (n_maps,), "int64", ("map",)),
            ArraySpec("map_probability", (n_maps,), "float64", ("map",)),
            ArraySpec("map_is_zero", (n_maps,), "uint16", ("map",)),
        )
        of_data = [each for each in feature_set.schema.columns if each[0] not in OF_FEATURES]
        head = [("head_prediction", "int64"), ("head_confidence", "float64")]
        columns = (
            ("row", "int64"),
            ("feature_row", "int64"),
            ("sample_id", "string"),
            *of_data,
            ("label", "int64"),
            ("prediction", "int64"),
            ("confidence", "float64"),
            *(head if self.chosen.head is not None else []),
            ("explained", "int64"),
            *((name, "float64") for name in VOICE_COLUMNS if self.has_voice),
            ("zero_maps", "int64"),
            ("status", "string"),
        )
        return Schema(arrays, columns)

    def check(self, plan: Plan) -> None:
        """Check that the source is still the planned one; raises ``InputError``."""
        check_planned(self.source.open(), plan["inputs"]["source"])

    def setup(self, n_threads: int) -> Flow:
        """The opened source with the chosen rows alone, and networks on their device."""
        import torch

        from stages.explanation.map_forward import MapForward, check_pooled
        from stages.reflection.flow import flow_of
        from stages.sensing.model import load_sensing
        from stages.sensing.probe import sample_images

        torch.set_num_threads(n_threads)
        source = picked(self.source.open(), self.chosen.rows)
        images = sample_images(source)
        sensing = load_sensing(
            self.card, self.weights, self.device, images=images, keeps_layers=True
        )
        if self.in_closed_form:
            check_pooled(sensing, self.layer, images)
        forward = MapForward(
            sensing,
            self.weights,
            None,
            self.batch_rows,
            target=self.layer,
            questions=self.questions,
            in_closed_form=self.in_closed_form,
        )
        return flow_of(source, forward, n_threads, self.n_images).checked(images)

    def compute(self, state: Flow, shard: Shard, tick: Tick) -> ShardOutput:
        """Maps and sample columns of a shard.

        A row whose image cannot be read, or whose recomputed logits are not those of the feature
        set, has maps of NaN and the reason in its ``status``.
        """
        feature_set = FeatureStore(self.store).open(self.features)
        samples, logits = self._stored(feature_set, shard)
        explained = self._explained(samples)
        asked = asked_classes(self.questions, logits, explained)
        arrays: dict[str, NDArray[Any]] = {
            "maps": np.zeros((shard.n_rows, len(self.questions), *self.layer.grid), np.float32),
            "asked": asked,
            "stored": logits,
            "logits": np.zeros_like(logits),
            "voice": np.zeros((shard.n_rows, len(VOICE_COLUMNS)), np.float32),
        }
        failed: dict[int, str] = {}
        read_s = 0.0
        for batch in state.through(shard, arrays):
            read_s += batch.read_s
            errors = {row: f"the network fails: {why}" for row, why in batch.errors.items()}
            failed |= {batch.at + row: why for row, why in (errors | batch.rows.failed).items()}
            tick(len(batch.rows.images))
        failed = self._unlike(feature_set, arrays) | failed
        files = self._encoded(feature_set, shard, arrays, samples, failed)
        facts = {
            "failed": {str(shard.start + row): failed[row] for row in sorted(failed)},
            "device": self.device,
            "batch_rows": state.rows_at_once,
            "way": "closed form" if self.in_closed_form else "backward passes",
        }
        return ShardOutput(files, facts, {"read": read_s / state.n_readers})

    def _stored(
        self, feature_set: FeatureSet, shard: Shard
    ) -> tuple[pa.Table, NDArray[np.float32]]:
        """Sample columns and logits of the rows of a shard, from the feature set."""
        rows = self.chosen.rows[shard.start : shard.stop]
        size = feature_set.shard_set.chunk_rows
        tables, logits = [], []
        for index in np.unique(rows // size).tolist():
            theirs = feature_set.shard_set.shards[index]
            wanted = rows[rows // size == index] - theirs.start
            tables.append(feature_set.read_samples(theirs).take(wanted))
            logits.append(feature_set.read_chunk("logits", theirs)[wanted])
        return pa.concat_tables(tables), np.concatenate(logits)

    def _explained(self, samples: pa.Table) -> NDArray[np.int64]:
        if self.of_class in (PREDICTION, LABEL):
            found: NDArray[np.int64] = samples[str(self.of_class)].to_numpy().copy()
            return found
        return np.full(len(samples), self.of_class, np.int64)

    def _unlike(self, feature_set: FeatureSet, arrays: dict[str, NDArray[Any]]) -> dict[int, str]:
        """Row -> reason, for rows whose logits are not those of the feature set."""
        params = feature_set.plan["stage"].get("params", {})
        is_bf16 = params.get("precision") == "bf16"
        tolerance = BF16_TOLERANCE if is_bf16 else LOGITS_TOLERANCE
        ours, theirs = arrays["logits"], arrays["stored"]
        found = why_not_finite({"logits": ours})
        apart = np.abs(ours - theirs).max(axis=1)
        for row in np.flatnonzero(apart > tolerance * np.abs(theirs).max(axis=1)).tolist():
            found[row] = (
                f"its logits differ from those of {self.features} by {apart[row]:.3g}: the image "
                "or the network is another one"
            )
        return found

    def _encoded(
        self,
        feature_set: FeatureSet,
        shard: Shard,
        arrays: dict[str, NDArray[Any]],
        samples: pa.Table,
        failed: dict[int, str],
    ) -> dict[str, bytes]:
        schema, bad = self.schema(feature_set), list(failed)
        maps, asked, logits = arrays["maps"], arrays["asked"], arrays["stored"]
        probabilities = np.take_along_axis(softmax(logits.astype(np.float64)), asked, axis=1)
        is_zero = (maps == 0).all(axis=(2, 3))
        explained = self._explained(samples)
        maps[bad], probabilities[bad], arrays["voice"][bad] = np.nan, np.nan, np.nan
        asked[bad], is_zero[bad], explained[bad] = -1, False, -1
        status = np.full(shard.n_rows, "ok", dtype=object)
        status[bad] = [failed[row] for row in bad]
        rows = slice(shard.start, shard.stop)
        made: dict[str, Any] = {
            "row": np.arange(shard.start, shard.stop),
            "feature_row": self.chosen.rows[rows],
            "explained": explained,
            "zero_maps": is_zero.sum(axis=1),
            "status": status,
        }
        if self.chosen.head is not None:
            prediction, confidence = self.chosen.head
            made |= {"head_prediction": prediction[rows], "head_confidence": confidence[rows]}
        for at, name in enumerate(VOICE_COLUMNS):
            made[name] = arrays["voice"][:, at].astype(np.float64)
        columns = {name: made.get(name, _of(samples, name)) for name, _ in schema.columns}
        stored = {
            "maps": maps,
            "map_class": asked,
            "map_probability": probabilities,
            "map_is_zero": is_zero.astype(np.uint16),
        }
        chunk_rows = min(self.shard_rows, len(self.chosen.rows))
        return encode_rows(schema, shard, chunk_rows, stored, columns)


def _of(samples: pa.Table, name: str) -> Any:  # Any: an Arrow array, or None for a column of ours
    return samples[name].combine_chunks() if name in samples.column_names else None


def check_questions(
    questions: Sequence[Question], names: Sequence[str], of_class: str | int
) -> None:
    """Raise ``InputError`` if Q is P in every row, or the network has too few classes."""
    if any(each.contrast == of_class for each in questions):
        name = names[int(of_class)]
        raise InputError(
            f"--contrast {name}: expected classes other than the explained one, which is {name} too"
        )
    if len(names) < 2 and any(each.method in ("contrast-cam", "voice") for each in questions):
        raise InputError(
            "--method: contrast-cam and voice need another class, the network has only one"
        )
