"""The extract stage: images in, features and logits out, once and for all.

What introspection needs of an image are two vectors, the input ``f`` and the output ``z`` of the
network's last layer; every gradient of every loss is made of them when it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResourceError
from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.runner import RunReport, run_map
from pipeline.space import check_space
from pipeline.stage import ShardOutput, Tick
from stages.data.registry import SourceSpec
from stages.data.source import ImageSource, check_planned, source_facts
from stages.errors import InputError
from stages.reflection.named_layer import NamedLayer
from stages.sensing.card import ModelCard, Precision
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.plan import Plan
from store.schema import ArraySpec, Schema
from store.shards import DEFAULT_SHARD_ROWS, Shard

if TYPE_CHECKING:
    from stages.reflection.flow import Flow
    from stages.reflection.perturbation import Perturbation

BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Extract:
    """Features and logits of every image of ``source`` under the network of ``card``.

    Attributes:
        source: the images; their size must be the network's.
        card, weights: the network.
        precision: of the layers before the last one, "fp32" or "bf16".
        shard_rows: images in a shard, a Zarr chunk and a Parquet part.
        device: where workers compute; "cuda" is the GPU that a worker was given.
        batch_rows: images at once in a network; `fitted` chooses where it is None. It is not part
            of the plan: another batch size changes rows by rounding only.
        layer: another layer whose gradients are stored as well; none by default.
        n_images: images at once that a worker's memory holds; `fitted` finds out.
        perturbations: that images go through first, in this order; none by default.
    """

    source: SourceSpec
    card: ModelCard
    weights: str
    precision: Precision = "fp32"
    shard_rows: int = DEFAULT_SHARD_ROWS
    device: str = "cpu"
    batch_rows: int | None = None
    layer: NamedLayer | None = None
    n_images: int | None = None
    perturbations: tuple[Perturbation, ...] = ()

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 1  # raise it when any row comes out otherwise

    def plan(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the rows; opens the source and checks that it fits.

        Raises:
            InputError: the data set has other classes than the network.
        """
        source = self.source.open()
        _check_classes(source, self.card)
        perturbed = [each.to_dict() for each in self.perturbations]
        tags = "".join(f"+{each.tag}" for each in self.perturbations)
        return {
            "name": f"{source.name}{tags}-{source.split}@{self.card.name}",
            "stage": {
                "name": self.name,
                "version": self.version,
                "params": {
                    "precision": self.precision,
                    "layer": self.layer.to_dict() if self.layer else None,
                    **({"perturbations": perturbed} if perturbed else {}),
                },
            },
            "inputs": {"source": source_facts(source), "model": self.card.to_dict()},
            "schema": self.schema(source).to_json(),
            "n_rows": source.n_rows,
            "shard_rows": self.shard_rows,
        }

    def schema(self, source: ImageSource) -> Schema:
        """The arrays and columns of the data set's features."""
        arrays = [
            ArraySpec("features", (self.card.feature_dim,), "float32", ("feature",)),
            ArraySpec("logits", (self.card.n_classes,), "float32", ("class",)),
        ]
        if self.layer is not None:
            arrays.append(self.layer.array_spec(self.card))
        columns = (
            ("row", "int64"),
            ("sample_id", "string"),
            *source.extra_columns,
            ("label", "int64"),
            ("prediction", "int64"),
            ("confidence", "float64"),
            ("status", "string"),
        )
        return Schema(tuple(arrays), columns)

    def check(self, plan: Plan) -> None:
        """Make sure that the source is still the planned one; raises ``InputError``."""
        check_planned(self.source.open(), plan["inputs"]["source"])

    def setup(self, n_threads: int) -> Flow:
        """The opened source, and networks on their device."""
        import torch

        from stages.reflection.flow import flow_of
        from stages.reflection.forward import Forward
        from stages.sensing.model import load_sensing

        assert self.batch_rows is not None  # `fitted` has set both
        assert self.n_images is not None
        torch.set_num_threads(n_threads)
        sensing = load_sensing(self.card, self.weights, self.device, self.precision)
        forward = Forward(sensing, self.weights, self.layer, self.batch_rows, self.perturbations)
        return flow_of(self.source.open(), forward, n_threads, self.n_images)

    def compute(self, state: Flow, shard: Shard, tick: Tick) -> ShardOutput:
        """Features, logits and sample columns of a shard.

        An image that cannot be read, makes the network fail, or gives numbers that are not finite
        becomes a row of NaN with the reason in its ``status``, and is listed in the receipt's
        ``failed``.
        """
        schema = self.schema(state.source)
        arrays = {s.name: np.empty((shard.n_rows, *s.row_shape), s.dtype) for s in schema.arrays}
        parts: list[dict[str, NDArray[Any]]] = []
        failed: dict[int, str] = {}
        errors: dict[int, Exception] = {}
        crc = 0
        read_s = 0.0
        for batch in state.through(shard, arrays):
            at, rows = batch.at, batch.rows
            read_s += batch.read_s
            crc = google_crc32c.extend(crc, rows.images)
            failed |= {at + row: reason for row, reason in rows.failed.items()}
            found = batch.errors.items()
            errors |= {at + row: error for row, error in found if row not in rows.failed}
            parts.append(rows.columns)  # not the images: a shard of them may be larger than memory
            tick(len(rows.images))
        began = time.perf_counter()
        failed |= _unfit(shard, arrays, failed, errors)
        for values in arrays.values():
            values[list(failed)] = np.nan
        columns = _columns(shard, parts, arrays["logits"], failed, schema)
        chunk_rows = min(self.shard_rows, state.source.n_rows)  # setup: the planned number
        files = encode_rows(schema, shard, chunk_rows, arrays, columns)
        encode_s = time.perf_counter() - began
        return ShardOutput(
            files,
            {
                "failed": {str(shard.start + row): failed[row] for row in sorted(failed)},
                "images_crc32c": f"{crc:08x}",
                "device": self.device,
                "batch_rows": state.rows_at_once,
            },
            {"read": read_s / state.n_readers, "encode": encode_s},
        )


def extract(
    store: FeatureStore,
    stage: Extract,
    executor: Executor,
    journal: Journal,
    take_in: Callable[[], None] = lambda: None,
) -> tuple[FeatureSet, RunReport]:
    """Make the feature set of a stage, or what is missing of it.

    ``take_in`` brings the network into the store once everything else has been checked.

    Raises:
        InputError, StoreError, PipelineError: see the messages; what was finished before is kept.
    """
    plan = stage.plan()
    there = store.find(plan)
    if there is not None and there.shard_set.is_complete():
        there.shard_set.confirm()
        n_failed = there.shard_set.n_failed_rows()
        return there, RunReport(len(there.shard_set.shards), 0, 0, n_failed, 0.0)
    executor.check()
    stage = fitted(stage, executor, store.preview(plan)["shards_to_do"])
    check_space(store.location, store.preview(plan)["bytes_to_write"])
    feature_set = store.prepare().create(plan)
    take_in()
    title = f"extract {feature_set.plan['name']}"
    report = run_map(stage, feature_set.shard_set, executor, journal, title=title)
    return feature_set, report


def fitted(stage: Extract, executor: Executor, n_shards: int) -> Extract:
    """The stage with batches that suit the network, halved where a worker's memory needs it.

    Raises ``ResourceError`` where not even one image fits.
    """
    from stages.reflection.footprint import footprint

    source = stage.source.open()
    memory = executor.worker_memory(n_shards)
    found = footprint(
        source,
        stage.card,
        stage.schema(source),
        min(stage.shard_rows, source.n_rows),
        precision=stage.precision,
        layer=stage.layer,
        is_perturbed=bool(stage.perturbations),
        device=stage.device,
    )
    if not (batch_rows := found.batch_rows(memory, stage.batch_rows)):
        title = f"{source.name} at {source.image_size[0]}x{source.image_size[1]} pixels"
        is_dense = stage.layer is not None and stage.layer.size is None
        projected = "; or project the gradients (--project 512)" if is_dense else ""
        raise ResourceError(found.refusal(title, memory) + projected)
    return replace(stage, batch_rows=batch_rows, n_images=found.n_images(memory))


def _check_classes(source: ImageSource, card: ModelCard) -> None:
    """Classes must be the network's; where one side only numbers them, their number must fit.

    A data set without labels fits every network: its labels are -1, and metrics leave it out.
    """
    names = source.class_names
    if not names:
        return
    if _are_numbers(names) or _are_numbers(card.class_names):
        n_missing = card.n_classes - len(names)
        # Arrays know only the labels that occur in them: the last class may have no sample.
        fits = n_missing == 0 or (n_missing > 0 and _are_numbers(names))
    else:
        fits = names == card.class_names
    if not fits:
        here = f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        raise InputError(
            f"model '{card.name}' tells {card.n_classes} classes apart "
            f"({', '.join(card.class_names[:4])}{', ...' if card.n_classes > 4 else ''}), "
            f"{source.name} has {here}: choose another --model, or train one with "
            f"`intro-pipe train-sensing --dataset {source.name}`"
        )


def _are_numbers(names: tuple[str, ...]) -> bool:
    return names == tuple(str(label) for label in range(len(names)))


def _unfit(
    shard: Shard,
    arrays: Mapping[str, NDArray[np.float32]],
    unread: Mapping[int, str],
    errors: Mapping[int, Exception],
) -> dict[int, str]:
    """Offset in the shard -> why the network has no vectors for an image that could be read.

    Where it has them for none of several images it is not the images: its first error is raised,
    or an ``InputError`` where all that it gives is not finite.
    """
    reasons = {row: f"the network fails: {_one_line(error)}" for row, error in errors.items()}
    for name, values in arrays.items():
        flat = values.reshape(shard.n_rows, -1)
        is_fit = np.concatenate([np.isfinite(block).all(axis=1) for block in _blocks(flat)])
        for row in map(int, np.flatnonzero(~is_fit)):
            if row not in unread:
                reasons.setdefault(row, f"the network's {name} are not finite")
    if len(reasons) < max(2, shard.n_rows - len(unread)):
        return reasons
    if errors:
        raise errors[min(errors)]
    raise InputError(
        f"{reasons[min(reasons)]} for any image of rows {shard.start} to {shard.stop - 1}: is it "
        "trained, are these its weights, --mean and --std, and does --precision fp32 help?"
    )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _columns(
    shard: Shard,
    parts: Sequence[Mapping[str, NDArray[Any]]],
    logits: NDArray[np.float32],
    failed: dict[int, str],
    schema: Schema,
) -> dict[str, Any]:
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
    """Some rows at a time: what is made of all of them may be larger than they are."""
    return (values[start : start + BLOCK_ROWS] for start in range(0, len(values), BLOCK_ROWS))


def _confidence(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest softmax probability, in float64: in float32 sure predictions tie at 1."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidence: NDArray[np.float64] = 1.0 / np.exp(z).sum(axis=1)
    return confidence
