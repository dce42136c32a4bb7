"""The table of `status`: the contents of a store, corrupted sets, and their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import table
from cli.running import ending_of
from pipeline.terminal import printable_line

if TYPE_CHECKING:
    from pipeline.journal import Run
    from stages.contents import Row
    from stages.data.planned_source import PlannedSource
    from stages.data.registry import SourceSpec
    from stages.data.source import ReaderSource
    from store.artifacts import Artifact
    from store.catalog import FeatureStore
    from store.plan import Plan
    from store.storage import Storage

CORRUPT = "corrupt "
"""Prefix of the titles of work on corrupted sets."""

OF_FEATURES = ("maps", "scores")
"""Kinds of sets whose images are those of a feature set; its row says whether they have changed."""


def states(store: FeatureStore) -> list[Row]:
    """The contents of the store, and the corrupted sets that its journal records.

    Adds to ``stages.contents``: a partial row says how its last run ended, and a row is stale if
    its data set is no longer the planned one, by the fast fingerprint.
    """
    from pipeline.journal import newest_at
    from stages.contents import SET_KINDS, contents

    newest = newest_at(store.location)
    # The last two parts of a place: the store may have been moved.
    by_tail: dict[str, Run] = {}
    for place, (_, run) in newest.items():
        by_tail.setdefault("/".join(Path(place).parts[-2:]), run)
    rows = contents(store)
    for row in rows:
        folder = row["kind"] if row["kind"] in SET_KINDS else f"{row['kind']}s"
        place = f"{folder}/{row['name']}"
        _explain(row, by_tail.get(place), _plan_in(store.storage.child(place)))
        if row["kind"] == "model" and row["state"] == "complete":
            row["detail"] = _doubt_about(store.artifact("model", row["name"]))
    corrupted = {place: run for place, (title, run) in newest.items() if title.startswith(CORRUPT)}
    return rows + [_corrupted_row(place, corrupted[place]) for place in sorted(corrupted)]


def text_of(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The rows as a table, and a line for each row with something to explain."""
    whys = [row["detail"].removeprefix(row["progress"]).lstrip(",:; ") for row in rows]
    lines = [
        printable_line(f"{row['name']} ({row['kind']}): {why}")
        for row, why in zip(rows, whys, strict=True)
        if why
    ]
    return "\n".join([table(rows, columns), *([""] if lines else []), *lines])


def _corrupted_row(place: str, run: Run) -> Row:
    from stages.contents import row_of_set
    from store.errors import StoreError
    from store.shardset import find_set
    from store.storage import LocalStorage

    row: Row = {"kind": "corrupted", "name": place, "rows": None, "bytes": 0}
    row |= {"progress": "", "failed": {}}
    try:
        found = find_set(LocalStorage(place))
    except (StoreError, OSError) as error:
        return {**row, "state": "damaged", "detail": str(error)}
    if found is None:
        return {**row, "state": "missing", "detail": "its folder no longer exists"}
    return _explain(row_of_set(found, "corrupted", place), run, found.plan)


def _explain(row: Row, run: Run | None, plan: Plan) -> Row:
    """Add to a row why it is partial or stale."""
    from stages.contents import INTACT_STATES

    ending = _ending(run, row["detail"]) if row["state"] == "partial" and run else ""
    is_read = row["state"] in (*INTACT_STATES, "stale") and row["kind"] not in OF_FEATURES
    changed = _changed(run, plan) if is_read else ""
    if changed and row["state"] == "complete":
        row["state"] = "stale"
    row["detail"] = "; ".join(part for part in (row["detail"], ending, changed) if part)
    return row


def _ending(run: Run, detail: str) -> str:
    """How the last run of a partial row ended; empty if ``detail`` already says it."""
    message = str(run.events[-1].get("error", "")).partition(": ")[2]  # behind its type
    return "" if message and message in detail else ending_of(run)


def _doubt_about(model: Artifact) -> str:
    """Why a model of an older version would be refused today; empty if it would not be."""
    from stages.errors import InputError
    from stages.sensing.card import check_normalisation
    from stages.sensing.models import model_card

    try:
        card = model_card(model)
    except InputError:
        return ""  # a card in another format
    try:
        check_normalisation(card.mean, card.std)
    except InputError as error:
        return f"its features are doubtful: {error}"
    return ""


def _plan_in(storage: Storage) -> Plan:
    """The plan at a place; empty if it cannot be read, which the state of the row shows."""
    from store.errors import NotFoundError
    from store.plan import read_object
    from store.shardset import PLAN_KEY

    try:
        return read_object(storage.read(PLAN_KEY))
    except (NotFoundError, ValueError):
        return {}


def _changed(run: Run | None, plan: Plan) -> str:
    """How the data set differs from the planned one now; empty if it does not.

    It is read from where the run found it. A data set that no longer exists counts as unchanged.
    """
    from pipeline.errors import JournalError
    from stages.data.source import source_facts
    from stages.errors import InputError
    from store.plan import differences

    inputs = plan.get("inputs")
    planned = inputs.get("source") if isinstance(inputs, Mapping) else None
    if run is None or not isinstance(planned, Mapping):
        return ""
    try:
        source = source_of(run, planned)
        found = [line.partition(":")[0] for line in differences(source_facts(source), planned)]
    except (InputError, JournalError, OSError):
        return ""
    return f"its data set has changed: other {', '.join(found)}" if found else ""


def source_of(run: Run, planned: Mapping[str, Any]) -> ReaderSource:  # Any: JSON
    """The images of a run, from where the run read them; raises what ``_spec`` raises.

    A run may have named its classes, so the planned order is used if it fits the data set.
    """
    from stages.data.planned_source import planned_source
    from stages.errors import InputError

    facts = planned_source(planned)
    spec = _spec(run, facts)
    source, names = spec.open(), facts.class_names or ()
    if names in ((), source.class_names):
        return source
    try:
        return replace(spec, classes=names).open()
    except InputError:
        return source


def _spec(run: Run, planned: PlannedSource) -> SourceSpec:
    """Where a run found its images.

    Raises:
        InputError: they no longer exist.
        JournalError: a journal may not name this place.
    """
    from cli.replay import images_of
    from stages.data.planned_images import changed_as
    from stages.data.registry import SourceSpec

    dataset, root, limit, corruptions = images_of(run, *planned.clean)
    spec = SourceSpec(dataset, planned.split, str(root), planned.resizing, limit, corruptions)
    return changed_as(planned, spec)
