"""The next samples of a real pool to label: a list and a contact sheet for people."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.journal import Journal
from pipeline.progress import Progress
from stages.applications.active_learning import VERSION, WEIGHTS, code_of
from stages.applications.labels import label_list
from stages.applications.lesson import (
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
from stages.applications.strategies import Query, at_random
from stages.data.folder import FolderReader
from stages.data.source import ReaderSource, source_facts
from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.labelled import READ_ROWS
from stages.sensing.model import Sensing
from stages.sensing.weights import save_weights, weights_hash
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, canonical_json, fingerprint

LIST, SHEET = "to-label.csv", "to-label.png"
THUMBNAIL, COLUMNS, CAPTION = 96, 20, 12
"""Pixels of a picture, pictures side by side, pixels of the number below each."""


@dataclass(frozen=True)
class Asking:
    """A question for labels.

    Attributes:
        source: the pool, without labels.
        labels: row -> class, of what is labelled so far.
        n: how many more.
    """

    lesson: LessonParams
    source: ReaderSource
    labels: Mapping[int, str]
    n: int

    def __post_init__(self) -> None:
        n_left = self.source.n_rows - len(self.labels)
        if self.n > n_left:
            raise InputError(
                f"{self.source.name} has {n_left:,} images without a label, {self.n:,} were asked "
                "for: ask for fewer"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted(set(self.labels.values())))

    def plan(self) -> Plan:
        """Everything that determines what is asked for."""
        labels = hashlib.sha256(canonical_json(sorted(self.labels.items()))).hexdigest()
        params = {**asdict(self.lesson), "layers": list(self.lesson.layers), "ask": self.n}
        return {
            **code_of(self.lesson.network),
            "stage": {"name": "ask-for-labels", "version": VERSION, "params": params},
            "inputs": {
                "source": source_facts(self.source),
                "labels": {"count": len(self.labels), "sha256": labels},
            },
        }

    def result_of(self, store: FeatureStore) -> Artifact:
        """The question of that plan; it need not be there."""
        name = f"{self.source.name}-ask-{len(self.labels)}-{fingerprint(self.plan())[:8]}"
        return store.artifact("result", name)


def ask(store: FeatureStore, asking: Asking, device: str, journal: Journal) -> Artifact:
    """Choose the next samples to label, and keep list, contact sheet and f; once made it is read.

    Raises:
        InputError: fewer samples can be read than are asked for.
    """
    result, plan = asking.result_of(store), asking.plan()
    if result.refuse_other(plan) and result.is_settled():
        return result
    if len(asking.class_names) < FEWEST_CLASSES:  # the samples are drawn evenly
        query, files, facts = _without_a_network(asking)
    else:
        query, files, facts = _with_a_network(asking, device)
    sample_ids = sample_ids_of(asking.source)
    ids = [sample_ids[row] for row in query.rows]
    files |= {LIST: label_list(ids), SHEET: contact_sheet(asking.source, query.rows)}
    store.prepare()
    journal.begin()
    result.claim(plan)
    scores = [round(float(score), 6) for score in query.scores]
    result.write(
        files, {**facts, "asked": ids, "scores": scores, "classes": list(asking.class_names)}
    )
    return result


def sample_ids_of(source: ReaderSource) -> tuple[str, ...]:
    """Of the rows of a pool: their paths below its folder."""
    assert isinstance(source.reader, FolderReader)  # as pool_source makes it
    return source.reader.files


def check_place(folder: Path, result: Artifact) -> None:
    """Raise ``InputError`` where another list lies: it may hold somebody's labels."""
    path = folder / LIST
    ours = result.read(LIST) if result.is_complete() else None
    if path.exists() and path.read_bytes() != ours:
        raise InputError(
            f"{path} is there already and may hold labels: name another --out (and give it as "
            "--labels, if it does)"
        )


def copy_question(result: Artifact, folder: Path) -> Path:
    """Copy list and contact sheet to where people label; gives the list's place."""
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


def _with_a_network(
    asking: Asking, device: str
) -> tuple[Query, dict[str, bytes], dict[str, Any]]:  # Any: JSON
    lesson, source = asking.lesson, asking.source
    seed = seed_of(lesson.seed, "ask", len(asking.labels))
    rows = np.array(sorted(asking.labels), dtype=np.int64)
    images = torch.cat([_labelled_image(source, row) for row in rows.tolist()])
    place = {name: at for at, name in enumerate(asking.class_names)}
    labels = torch.tensor([place[asking.labels[row]] for row in rows.tolist()])
    names, family = asking.class_names, source.family
    card = card_of(lesson, images, class_names=names, family=family)
    network = build_network(lesson.network, card.n_classes)
    renew(network, card, seed)
    network.to(device)
    with Progress(f"train on {len(rows)} labels", 2 * lesson.epochs, unit="epochs") as progress:
        on_device = labels.to(device)
        tick = progress.advance
        fit = train_f(network, card, images.to(device), on_device, lesson, seed, tick)
        sensing = Sensing(network, card).to(device)
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
    }
    return Query(left[query.rows], query.scores), {WEIGHTS: save_weights(network)}, facts


def _labelled_image(source: ReaderSource, row: int) -> Tensor:
    found = source.read(row, row + 1)
    if found.failed:
        raise InputError(
            f"{sample_ids_of(source)[row]}: has a label and cannot be read "
            f"({found.failed[0]}): mend the file, or leave its label empty"
        )
    return torch.from_numpy(found.images)


def _blocks(source: ReaderSource, failed: set[int]) -> Iterator[Tensor]:
    """The images of a source, some at a time; ``failed`` gets the rows that cannot be read."""
    for start in range(0, source.n_rows, READ_ROWS):
        rows = source.read(start, min(start + READ_ROWS, source.n_rows))
        failed |= {start + row for row in rows.failed}
        yield torch.from_numpy(rows.images)


def _check_enough(asking: Asking, n_left: int) -> None:
    if n_left < asking.n:
        raise InputError(
            f"{asking.source.name} has {n_left:,} images without a label that can be read, "
            f"{asking.n:,} were asked for: ask for fewer"
        )


def contact_sheet(source: ReaderSource, rows: NDArray[np.int64]) -> bytes:
    """Small pictures of some rows as one PNG, numbered from 1 in their order."""
    n_columns = min(COLUMNS, len(rows))
    n_lines = -(-len(rows) // n_columns)
    width, height = THUMBNAIL + 4, THUMBNAIL + 4 + CAPTION
    sheet = Image.new("RGB", (n_columns * width, n_lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    for at, row in enumerate(rows.tolist()):
        left, top = at % n_columns * width + 2, at // n_columns * height + 2
        picture = source.reader.read(row, row + 1, (THUMBNAIL, THUMBNAIL)).images[0]
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left + 2, top + THUMBNAIL), str(at + 1), fill="black")
    sink = io.BytesIO()
    sheet.save(sink, "png")
    return sink.getvalue()
