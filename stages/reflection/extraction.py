"""The extract stage: compute features and logits of images, once.

Introspection needs two vectors of an image, the input ``f`` and the output ``z`` of the network's
last layer; the gradients of all losses are computed from them when they are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResourceError
from pipeline.executors import Executor, LocalExecutor
from pipeline.make import ShardJob
from pipeline.space import check_space
from pipeline.stage import NO_PREVIEW, Job, Preview
from pipeline.work import ShardOutput, Tick
from stages.data.listing import left_out_facts
from stages.data.registry import SourceSpec
from stages.data.source import ImageSource, check_planned, source_facts
from stages.errors import InputError
from stages.metrics.finite import why_not_finite
from stages.reflection.named_layer import NamedLayer
from stages.reflection.sample_columns import sample_columns
from stages.sensing.card import ModelCard, Precision
from stages.sensing.class_check import check_classes
from stages.sensing.map_layers import STATISTICS, MapLayer, statistics_spec
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.schema import ArraySpec, Schema
from store.shards import DEFAULT_SHARD_ROWS, Shard
from store.shardset import ShardSet

if TYPE_CHECKING:
    from stages.reflection.flow import Flow
    from stages.reflection.perturbation import Perturbation


@dataclass(frozen=True)
class Extraction:
    """Features and logits of every image of ``source`` under the network of ``card``.

    Attributes:
        source: the images; their size must be the network's.
        card, weights: the network.
        precision: precision of the layers before the last one, "fp32" or "bf16".
        shard_rows: images in a shard, a Zarr chunk and a Parquet part; with batch statistics
            rounded down to whole groups, but at least one.
        device: device of the workers; "cuda" is the GPU assigned to a worker.
        batch_rows: images per forward pass, chosen by `fitted` by default. It is not part of the
        plan, because it only affects rounding.
        layer: another layer whose gradients are stored as well; none by default.
        perturbations: applied to the images first, in this order; none by default.
        maps: layers whose feature maps' mean and standard deviation of each channel are stored.
        tags: suffixes of the set's name for what distinguishes ``card`` from the stored model's.
    """

    source: SourceSpec
    card: ModelCard
    weights: str
    precision: Precision = "fp32"
    shard_rows: int = DEFAULT_SHARD_ROWS
    device: str = "cpu"
    batch_rows: int | None = None
    layer: NamedLayer | None = None
    perturbations: tuple[Perturbation, ...] = ()
    maps: tuple[MapLayer, ...] = ()
    tags: tuple[str, ...] = ()

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 1  # raise it when any row changes

    def __post_init__(self) -> None:
        """Round to whole groups: then no group depends on how rows are split into shards."""
        n_groups = max(1, self.shard_rows // self.group_rows)
        object.__setattr__(self, "shard_rows", n_groups * self.group_rows)

    @property
    def group_rows(self) -> int:
        """Number of consecutive rows that share batch statistics; 1 without them."""
        return self.card.batch_statistics or 1

    def plan(
        self, facts: Mapping[str, Any] | None = None, source: ImageSource | None = None
    ) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the rows; checks that the source fits.

        Args:
            facts: facts of the source if known; by default the source is hashed.
            source: the source if open.

        Raises:
            InputError: the data set has other classes than the network.
        """
        source = source or self.source.open()
        check_classes(source, self.card)
        perturbed = [each.to_dict() for each in self.perturbations]
        tags = "".join(
            f"+{tag}" for tag in (*self.tags, *(each.tag for each in self.perturbations))
        )
        # In version 1, gradients of a layer were wrong where images are perturbed.
        version = 2 if self.layer and self.perturbations else self.version
        return {
            "name": f"{source.name}{tags}-{source.split}@{self.card.name}",
            "stage": {
                "name": self.name,
                "version": version,
                "params": {
                    "precision": self.precision,
                    "layer": self.layer.to_dict() if self.layer else None,
                    **({STATISTICS: [asdict(each) for each in self.maps]} if self.maps else {}),
                    **({"perturbations": perturbed} if perturbed else {}),
                },
            },
            "inputs": {"source": facts or source_facts(source), "model": self.card.to_dict()},
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
        if self.maps:
            arrays.append(statistics_spec(self.maps))
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


@dataclass(frozen=True)
class FittedExtraction:
    """An `Extraction` whose batches fit the network and the memory of a worker; see `fitted`.

    Attributes:
        stage: what is extracted.
        batch_rows: images per forward pass.
        n_images: number of images that fit into the memory of a worker at once.
    """

    stage: Extraction
    batch_rows: int
    n_images: int

    name: ClassVar[str] = Extraction.name
    version: ClassVar[int] = Extraction.version
    rows: ClassVar[str] = "images"

    def check(self, plan: Plan) -> None:
        """Check that the source is still the planned one; raises ``InputError``."""
        check_planned(self.stage.source.open(), plan["inputs"]["source"])

    def setup(self, n_threads: int) -> Flow:
        """The opened source, and networks on their device."""
        import torch

        from stages.reflection.flow import flow_of
        from stages.reflection.forward import Forward
        from stages.sensing.model import load_sensing
        from stages.sensing.probe import sample_images

        torch.set_num_threads(n_threads)
        stage = self.stage
        source = stage.source.open()
        images = sample_images(source)
        sensing = load_sensing(
            stage.card,
            stage.weights,
            stage.device,
            stage.precision,
            images=images,
            maps=[each.layer for each in stage.maps],
        )
        forward = Forward(sensing, stage.weights, stage.layer, self.batch_rows, stage.perturbations)
        return flow_of(source, forward, n_threads, self.n_images).checked(images)

    def compute(self, state: Flow, shard: Shard, tick: Tick) -> ShardOutput:
        """Features, logits and sample columns of a shard.

        An image that cannot be read, makes the network fail, or gives numbers that are not finite
        becomes a row of NaN with the reason in its ``status``, and is listed in the receipt's
        ``failed``.
        """
        schema = self.stage.schema(state.source)
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
            parts.append(rows.columns)  # not the images: those of a shard may be larger than memory
            tick(len(rows.images))
        began = time.perf_counter()
        failed |= _unfit(shard, arrays, failed, errors)
        for values in arrays.values():
            values[list(failed)] = np.nan
        columns = sample_columns(shard, parts, arrays["logits"], failed, schema)
        chunk_rows = min(self.stage.shard_rows, state.source.n_rows)  # setup: the planned number
        files = encode_rows(schema, shard, chunk_rows, arrays, columns)
        encode_s = time.perf_counter() - began
        return ShardOutput(
            files,
            {
                "failed": {str(shard.start + row): failed[row] for row in sorted(failed)},
                "images_crc32c": f"{crc:08x}",
                "device": self.stage.device,
                "batch_rows": state.rows_at_once,
                **left_out_facts(state.source.left_out),
            },
            {"read": read_s / state.n_readers, "encode": encode_s},
        )


def extraction_job(
    store: FeatureStore,
    extraction: Extraction,
    executor: Executor,
    imports: Job | None = None,
    *,
    plan: Plan | None = None,
    preview: Preview = NO_PREVIEW,
    check: Callable[[], object] = lambda: None,
    accepts_failures: bool = False,
) -> ShardJob:
    """The job that computes the feature set of an extraction.

    Args:
        store: store of the set.
        extraction: what is extracted.
        executor: runs the workers.
        imports: imports a network that was checked on images of the source, after all other
            checks. Without it, the network is in the store, and the job checks it.
        plan: plan of the extraction, if known.
        preview: description of the job.
        check: raises if the network must not compute anything.
        accepts_failures: whether any number of rows may fail. Otherwise a set with too many failed
            rows is refused, whether they fail now or failed before.

    Raises:
        InputError: the data set does not fit the network.
    """
    plan = plan or extraction.plan()
    name = f"{plan['name']}-{fingerprint(plan)}"

    def find() -> ShardSet | None:
        found = store.find(plan)
        return None if found is None else found.shard_set

    def fit(n_shards: int) -> Callable[[ShardSet], FittedExtraction]:
        if isinstance(executor, LocalExecutor):  # other workers may have other devices
            _require_device(extraction.device)
        ready = fitted(extraction, executor, n_shards)
        check_space(store.location, store.preview(plan)["bytes_to_write"])
        if imports is None:
            check_network(extraction)
        return lambda _: ready

    return ShardJob(
        plan,
        f"features/{name}",
        name,
        f"extract {plan['name']}",
        preview,
        executor,
        find,
        lambda: store.prepare().create(plan).shard_set,
        fit,
        check,
        needs=(imports,) if imports else (),
        opened=FeatureSet,
        accepts_failures=accepts_failures,
    )


def fitted(stage: Extraction, executor: Executor, n_shards: int) -> FittedExtraction:
    """The stage with the best batch size for the network, halved until a batch fits into memory.

    Raises ``ResourceError`` if not even one image fits.
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
    if not (batch_rows := found.batch_rows(memory, stage.batch_rows, stage.group_rows)):
        title = f"{source.name} at {source.image_size[0]}x{source.image_size[1]} pixels"
        is_dense = stage.layer is not None and stage.layer.size is None
        projected = "; or project the gradients (--project 512)" if is_dense else ""
        raise ResourceError(found.refusal(title, memory, stage.group_rows) + projected)
    return FittedExtraction(stage, batch_rows, found.n_images(memory))


def _require_device(device: str) -> None:
    from stages.sensing.device import require_device

    require_device(device)


def check_network(stage: Extraction) -> None:
    """Check the network on images of the source before anything is written.

    Raises ``InputError`` as ``stages.sensing.model.sensing_of`` does.
    """
    from stages.sensing.model import load_sensing
    from stages.sensing.probe import sample_images

    images = sample_images(stage.source.open())
    maps = [each.layer for each in stage.maps]
    # Batch norm may depend on other images if that is requested, and nothing else may.
    plain = replace(stage.card, batch_statistics=None)
    cards = [plain] if plain == stage.card else [plain, stage.card]
    for card in cards:
        load_sensing(card, stage.weights, images=images, is_new=True, maps=maps)


def _unfit(
    shard: Shard,
    arrays: Mapping[str, NDArray[np.float32]],
    unread: Mapping[int, str],
    errors: Mapping[int, Exception],
) -> dict[int, str]:
    """Offset in the shard -> reason why the network failed for an image that could be read.

    If it failed for all of several images, the images are not the cause: its first error is
    raised, or an ``InputError`` if it returned no finite numbers.
    """
    reasons = {row: f"the network fails: {_one_line(error)}" for row, error in errors.items()}
    not_finite = why_not_finite(arrays)
    reasons = {row: why for row, why in not_finite.items() if row not in unread} | reasons
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
