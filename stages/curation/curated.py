"""Compute the tables, the sheet and the card of a curation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from pipeline.make import Output
from pipeline.progress import Progress
from stages.curation.curation_result import (
    CLASSES,
    JOINT,
    NEIGHBOURS,
    RANKED,
    Asked,
    CurationCard,
)
from stages.curation.curation_scores import RANKINGS
from stages.curation.curation_sheet import Images, curation_sheet
from stages.curation.found_flips import found_flips
from stages.curation.ranked_rows import (
    Rows,
    Tick,
    by_class,
    joint_table,
    label_columns,
    near_columns,
    out_of_sample,
    ranked,
    top_rows,
)
from stages.data.flips import Flips
from stages.introspection.reading import Reading
from stages.out_folder import PAGE, PICTURE
from stages.reflection.feature_plan import FeaturePlan
from stages.sheets.sheet_page import sheet_html
from stages.sheets.sheet_picture import sheet_pngs
from stages.versions import versions
from store.featureset import FeatureSet


def curated(
    feature_set: FeatureSet,
    against: FeatureSet | None,
    asked: Asked,
    images: Images | None,
    command: str,
) -> Output:
    """The files and the card of a curation.

    Args:
        feature_set: the rows to rank.
        against: the rows to search for neighbours; None for the same.
        asked: the options.
        images: where the images are; None for no sheet.
        command: command that makes the result again, for the sheet.
    """
    started, plan = time.monotonic(), FeaturePlan.of(feature_set.plan)
    published, title = Rows.of(feature_set), f"Curation of {feature_set.plan['name']}"
    rows = published if asked.flips is None else _flipped(published, asked.flips)
    others = None if against is None else Rows.of(against)
    names = plan.output_names(rows.n_classes)
    n_work = len(rows.judged) + (int(rows.is_finite.sum()) if asked.neighbours else 0)
    with Progress(f"curate {feature_set.plan['name']}", n_work, unit="rows") as progress:
        reading = _reading(asked, rows, plan.model.M)
        frames = _frames(rows, others, reading, asked, names, progress.advance)
    found = None
    if asked.flips is not None:
        frames[RANKED]["is_flipped"] = (rows.labels != published.labels)[frames[RANKED]["row"]]
        found = found_flips(frames[RANKED][frames[RANKED]["self_confidence"].notna()])
    files = {name: frame.to_parquet(index=False) for name, frame in frames.items()}
    if images is not None:
        top = top_rows(frames[RANKED], asked.by, asked.top, is_same_set=against is None)
        sheet = curation_sheet(top, images, names, asked.by, title, command)
        files[PAGE] = sheet_html(sheet).encode()
        for number, png in enumerate(sheet_pngs(sheet), start=1):
            files[PICTURE.format(number=number)] = png
    card = CurationCard(
        title=title,
        features=feature_set.name,
        against=None if against is None else against.name,
        model=plan.model.name,
        split=plan.source.split,
        rows=len(rows),
        labelled=len(rows.judged),
        issues=int(frames[RANKED]["is_label_issue"].sum()),
        asked=asked,
        class_names=names,
        definitions={name: each.definition for name, each in RANKINGS.items()},
        versions=versions(),
        seconds=round(time.monotonic() - started, 1),
        found=found,
    )
    return files, asdict(card)


def _flipped(rows: Rows, flips: str) -> Rows:
    labels = Flips.of(flips).flipped(rows.labels, rows.n_classes)
    return dataclasses.replace(rows, labels=labels)


def _reading(asked: Asked, rows: Rows, M: float | None) -> Reading:
    """The vectors that are compared; ``M`` is that of the model, else measured."""
    width = rows.features.shape[1]
    if asked.loss is None:
        return Reading(rows.n_classes, width, "features", scaling="none")
    found = Reading(rows.n_classes, width, "reflection", asked.loss, M, scaling="none")
    return found.measured(rows.logits[rows.is_finite])


def _frames(
    rows: Rows,
    others: Rows | None,
    reading: Reading,
    asked: Asked,
    names: Sequence[str],
    tick: Tick,
) -> dict[str, pd.DataFrame]:
    """The tables; that of all rows is ranked."""
    p = out_of_sample(rows, asked.folds, asked.seed, tick)
    columns, found = label_columns(rows, p)
    tables = {
        CLASSES: by_class(rows, columns, found).assign(name=names),
        JOINT: joint_table(found),
    }
    near: dict[str, Any] = {}  # Any: columns of several types
    if asked.neighbours:
        near, tables[NEIGHBOURS] = near_columns(rows, others, reading, asked.neighbours, tick)
    called = np.array([*names, None], dtype=object)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(rows)),
            "sample_id": rows.sample_ids,
            "label": rows.labels,
            "label_name": called[rows.labels],
            "suggested": columns["suggested"],
            "suggested_name": called[columns["suggested"]],
            **columns,
            **near,
        }
    )
    return {RANKED: ranked(frame, asked.by), **tables}
