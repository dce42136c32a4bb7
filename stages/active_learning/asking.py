"""The next samples of a real pool to label: a list and a contact sheet for people."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from pipeline.make import ArtifactJob, Output
from pipeline.progress import Progress
from pipeline.stage import Preview
from stages.active_learning.labels import label_list
from stages.active_learning.lesson import (
    FEWEST_CLASSES,
    LessonParams,
    card_of,
    choose,
    factors_of,
    renew,
    seed_of,
    train_f,
    train_h,
)
from stages.active_learning.result_names import ASKING_STAGE, WEIGHTS
from stages.active_learning.strategies import Query, at_random
from stages.data.folder import FolderReader
from stages.data.near_equal import near_hint
from stages.data.resize import Resize
from stages.data.source import ReaderSource, source_facts
from stages.data.source_notes import left_out_of
from stages.errors import InputError
from stages.out_folder import check_folder
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.labelled import READ_ROWS
from stages.sensing.model import sensing_of
from stages.sensing.probe import N_ROWS
from stages.sensing.weights import save_weights, weights_hash
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, canonical_json, fingerprint

LIST, SHEET = "to-label.csv", "to-label.png"
THUMBNAIL, COLUMNS, CAPTION = 96, 20, 12
"""Size of a thumbnail in pixels, thumbnails per row, and height of the number below each."""


@dataclass(frozen=True)
class Asking:
    """A request for labels.

    Attributes:
        source: the pool, without labels.
        labels: row -> class of the rows that are labelled already.
        n: number of rows to label next.
        classes: all names that a label may have, in the order of the classes, if given.
    """

    lesson: LessonParams
    source: ReaderSource
    labels: Mapping[int, str]
    n: int
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_labels()
        n_left = self.source.n_rows - len(self.labels)
        if self.n > n_left:
            raise InputError(
                f"{self.source.name} has {n_left:,} images without a label, {self.n:,} were "
                "requested: request fewer"
            )

    def _check_labels(self) -> None:
        names = self.classes
        if names and (other := sorted(set(self.labels.values()) - set(names))):
            raise InputError(
                f"{self.source.name}: the label {other[0]!r} is not one of the {len(names)} given "
                f"classes{near_hint(other[0], names)}: correct it, or add it to --classes"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The given names, else those of the labels in alphabetical order."""
        return self.classes or tuple(sorted(set(self.labels.values())))

    def plan(self) -> Plan:
        """Everything that determines which rows are selected."""
        labels = hashlib.sha256(canonical_json(sorted(self.labels.items()))).hexdigest()
        params = {"ask": self.n, **({"classes": list(self.classes)} if self.classes else {})}
        inputs = {
            "source": source_facts(self.source),
            "labels": {"count": len(self.labels), "sha256": labels},
        }
        return self.lesson.plan(ASKING_STAGE, params, inputs)

    def result_of(self, store: FeatureStore) -> Artifact:
        """The result of that plan, which may not exist yet."""
        name = f"{self.source.name}-ask-{len(self.labels)}-{fingerprint(self.plan())[:8]}"
        return store.artifact("result", name)


def question_job(
    store: FeatureStore, asking: Asking, device: str, folder: Path, notes: Sequence[str] = ()
) -> ArtifactJob:
    """The job that selects the next samples to label; it stores their list, a contact sheet and f.

    Args:
        folder: receives copies of the list and the contact sheet.
        notes: lines to print first.

    Raises:
        InputError: the folder contains another list. The job itself raises it if fewer samples can
        be read than are requested, or a labelled sample cannot be read.
    """
    result, source, n_labelled = asking.result_of(store), asking.source, len(asking.labels)
    check_place(folder, result)
    n_left = source.n_rows - n_labelled
    return ArtifactJob(
        store,
        result,
        asking.plan(),
        title=f"choose {asking.n:,} images of {source.name} to label",
        preview=Preview(
            f"choose {asking.n:,} of {n_left:,} images without a label: {result.name}",
            {"result": result.name, "out": str(folder), **left_out_of(source)},
            notes,
        ),
        compute=lambda: _chosen(asking, device),
        check=lambda: _check(asking, device),
        copy=lambda result: [copy_question(result, folder)],
    )


def _check(asking: Asking, device: str) -> None:
    """Raise ``InputError`` unless the images can be read and the network passes its checks.

    The network is checked with fresh weights here, and with trained ones before it is used.
    """
    if _needs_network(asking):
        prepared = _prepared(asking, device)
        sensing_of(prepared.network, prepared.card, prepared.images[:N_ROWS], is_new=True)
    n_readable = 0
    for row in range(asking.source.n_rows):
        if row not in asking.labels and not asking.source.read(row, row + 1).failed:
            n_readable += 1
        if n_readable == asking.n:
            return
    _check_enough(asking, n_readable)


def _needs_network(asking: Asking) -> bool:
    """Whether there are labels to train on; otherwise the samples are drawn uniformly."""
    return len(set(asking.labels.values())) >= FEWEST_CLASSES


def _chosen(asking: Asking, device: str) -> Output:
    """The files and facts of a request for labels."""
    if _needs_network(asking):
        query, files, facts = _with_a_network(asking, device)
    else:
        query, files, facts = _without_a_network(asking)
    sample_ids = sample_ids_of(asking.source)
    ids = [sample_ids[row] for row in query.rows]
    files |= {LIST: label_list(ids), SHEET: contact_sheet(asking.source, query.rows)}
    scores = [round(float(score), 6) for score in query.scores]
    return files, facts | {"asked": ids, "scores": scores, "classes": list(asking.class_names)}


def sample_ids_of(source: ReaderSource) -> tuple[str, ...]:
    """Sample ids of the rows of a pool: their paths below its folder."""
    assert isinstance(source.reader, FolderReader)  # made by pool_source
    return source.reader.files


def check_place(folder: Path, result: Artifact) -> None:
    """Raise ``InputError`` if the folder is a file, or has another list, which may hold labels."""
    check_folder(folder)
    path = folder / LIST
    ours = result.read(LIST) if result.is_complete() else None
    if path.exists() and path.read_bytes() != ours:
        raise InputError(
            f"{path} already exists and may contain labels: choose another --out (and pass this "
            "file as --labels if it does)"
        )


def copy_question(result: Artifact, folder: Path) -> Path:
    """Copy the list and the contact sheet to a folder; returns the path of the list."""
    check_place(folder, result)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LIST, SHEET):
        (folder / name).write_bytes(result.read(name))
    return folder / LIST


def _without_a_network(asking: Asking) -> tuple[Query, dict[str, bytes], dict[str, Any]]:
    source = asking.source
    generator = np.random.default_rng(seed_of(asking.lesson.seed, "ask", len(asking.labels)))
    order = at_random(source.n_rows, source.n_rows, generator).rows
    rows: list[int] = []
    for row in order.tolist():
        if len(rows) == asking.n:
            break
        if row not in asking.labels and not source.read(row, row + 1).failed:
            rows.append(row)
    _check_enough(asking, len(rows))
    return Query(np.array(rows), np.zeros(len(rows))), {}, {"strategy": "random"}


@dataclass(frozen=True)
class _Prepared:
    """The labelled rows and their images, and a fresh network on the device."""

    rows: NDArray[np.int64]
    images: Tensor
    card: ModelCard
    network: nn.Module
    seed: int


def _prepared(asking: Asking, device: str) -> _Prepared:
    """Read the labelled images, and build the network; raises ``InputError``."""
    lesson, source = asking.lesson, asking.source
    seed = seed_of(lesson.seed, "ask", len(asking.labels))
    rows = np.array(sorted(asking.labels), dtype=np.int64)
    images = torch.cat([_labelled_image(source, row) for row in rows.tolist()])
    names, family = asking.class_names, source.family
    card = card_of(lesson, images, class_names=names, family=family)
    network = build_network(lesson.network, card.n_classes)
    renew(network, card, seed, lesson.initial.weights)
    return _Prepared(rows, images, card, network.to(device), seed)


def _with_a_network(
    asking: Asking, device: str
) -> tuple[Query, dict[str, bytes], dict[str, Any]]:  # Any: JSON
    lesson, source, prepared = asking.lesson, asking.source, _prepared(asking, device)
    rows, images, card = prepared.rows, prepared.images, prepared.card
    network, seed = prepared.network, prepared.seed
    place = {name: at for at, name in enumerate(asking.class_names)}
    labels = torch.tensor([place[asking.labels[row]] for row in rows.tolist()])
    with Progress(f"train on {len(rows)} labels", lesson.max_epochs, unit="epochs") as progress:
        on_device = labels.to(device)
        tick = progress.advance
        learned_ids = [sample_ids_of(source)[row] for row in rows.tolist()]
        fit = train_f(
            network, card, images.to(device), on_device, lesson, seed, tick, learned_ids.__getitem__
        )
        sensing = sensing_of(network, card, images[:N_ROWS], lesson.precision, is_new=True)
        failed: set[int] = set()
        factors = factors_of(sensing, _blocks(source, failed))
        learned = factors.take(rows)
        head = train_h(learned, on_device, lesson, seed, tick)[0] if lesson.kind == "h" else None
    left = np.setdiff1d(np.arange(source.n_rows), [*rows.tolist(), *failed])
    _check_enough(asking, len(left))
    query = choose(lesson, sensing, head, factors.take(left), learned, asking.n, seed)
    facts = {
        "strategy": lesson.strategy,
        "network": replace(card, weights_sha256=weights_hash(network)).to_dict(),
        "train_accuracy": fit.accuracy,
        "n_failed": len(failed),
        **({"n_not_finite": query.n_left_out} if query.n_left_out else {}),
    }
    return Query(left[query.rows], query.scores), {WEIGHTS: save_weights(network)}, facts


def _labelled_image(source: ReaderSource, row: int) -> Tensor:
    found = source.read(row, row + 1)
    if found.failed:
        raise InputError(
            f"{sample_ids_of(source)[row]}: has a label and cannot be read "
            f"({found.failed[0]}): fix the file, or leave its label empty"
        )
    return torch.from_numpy(found.images)


def _blocks(source: ReaderSource, failed: set[int]) -> Iterator[Tensor]:
    """Yield the images of a source in blocks; rows that cannot be read are added to ``failed``."""
    for start in range(0, source.n_rows, READ_ROWS):
        rows = source.read(start, min(start + READ_ROWS, source.n_rows))
        failed |= {start + row for row in rows.failed}
        yield torch.from_numpy(rows.images)


def _check_enough(asking: Asking, n_left: int) -> None:
    if n_left < asking.n:
        raise InputError(
            f"{asking.source.name} has {n_left:,} images without a label that can be read, "
            f"{asking.n:,} were requested: request fewer"
        )


def contact_sheet(source: ReaderSource, rows: NDArray[np.int64]) -> bytes:
    """Thumbnails of some rows as one PNG, numbered from 1 in the given order."""
    n_columns = min(COLUMNS, len(rows))
    n_lines = -(-len(rows) // n_columns)
    width, height = THUMBNAIL + 4, THUMBNAIL + 4 + CAPTION
    sheet = Image.new("RGB", (n_columns * width, n_lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    for at, row in enumerate(rows.tolist()):
        left, top = at % n_columns * width + 2, at // n_columns * height + 2
        picture = source.reader.read(row, row + 1, Resize((THUMBNAIL, THUMBNAIL))).images[0]
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left + 2, top + THUMBNAIL), str(at + 1), fill="black")
    sink = io.BytesIO()
    sheet.save(sink, "png")
    return sink.getvalue()
