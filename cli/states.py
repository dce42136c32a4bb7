"""The table of `status`: what is in the store and beside it, in what state, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.journal import Run
    from stages.data.registry import SourceSpec
    from store.catalog import FeatureStore
    from store.contents import Row
    from store.plan import Plan
    from store.storage import Storage

OF_IMAGES = ("extract", "corrupt", "train-sensing")
"""Commands that say where their images lie."""

CORRUPT = "corrupt "
"""How the title of work on a corrupted set begins."""

MAX_ERROR = 160
"""Characters of an error; `status --shards` and the journal have the rest."""


def states(store: FeatureStore) -> list[Row]:
    """The contents of the store, and the corrupted sets that its journal knows.

    Beyond ``store.contents``: partial says how the last run ended that worked there; stale, that
    the data set is no longer the planned one, by its cheap fingerprint.
    """
    from pipeline.journal import newest_at
    from store.contents import contents

    newest = newest_at(store.location)
    # The last two parts of a place: the store may have been moved.
    by_tail: dict[str, Run] = {}
    for place, (_, run) in newest.items():
        by_tail.setdefault("/".join(Path(place).parts[-2:]), run)
    rows = contents(store)
    for row in rows:
        folder = row["kind"] if row["kind"] == "features" else f"{row['kind']}s"
        place = f"{folder}/{row['name']}"
        _explain(row, by_tail.get(place), _plan_in(store.storage.child(place)))
    corrupted = {place: run for place, (title, run) in newest.items() if title.startswith(CORRUPT)}
    return rows + [_of_corrupted(place, corrupted[place]) for place in sorted(corrupted)]


def _of_corrupted(place: str, run: Run) -> Row:
    from store.contents import row_of_set
    from store.errors import StoreError
    from store.shardset import find_set
    from store.storage import LocalStorage

    row: Row = {"kind": "corrupted", "name": place, "rows": None, "bytes": 0}
    try:
        there = find_set(LocalStorage(place))
    except (StoreError, OSError) as error:
        return {**row, "state": "damaged", "detail": str(error)}
    if there is None:
        return {**row, "state": "missing", "detail": "its folder is gone"}
    return _explain(row_of_set(there, "corrupted", place), run, there.plan)


def _explain(row: Row, run: Run | None, plan: Plan) -> Row:
    """Put why a thing is partial, or why it is stale, into its row."""
    ending = _ending(run) if row["state"] == "partial" and run else ""
    changed = _changed(run, plan) if row["state"] in ("complete", "partial", "stale") else ""
    if changed and row["state"] == "complete":
        row["state"] = "stale"
    row["detail"] = "; ".join(part for part in (row["detail"], ending, changed) if part)
    return row


def _ending(run: Run) -> str:
    """How the last run ended that worked at something that is partial."""
    error = str(run.events[-1].get("error", ""))
    short = error if len(error) <= MAX_ERROR else f"{error[:MAX_ERROR]}..."
    said = {
        "unfinished": "the run was killed",
        "stopped": "stopped by Ctrl-C",
        "failed": short,
        "refused": short,
    }
    return said.get(run.outcome, "")


def _plan_in(storage: Storage) -> Plan:
    """The plan at a place; empty where none can be read, which the state says."""
    from store.errors import NotFoundError
    from store.plan import read_object
    from store.shardset import PLAN_KEY

    try:
        return read_object(storage.read(PLAN_KEY))
    except (NotFoundError, ValueError):
        return {}


def _changed(run: Run | None, plan: Plan) -> str:
    """How the data set that is there now differs from the planned one; empty if it does not.

    It is looked for where the run found it. One that is not there has not changed.
    """
    from stages.data.source import source_facts
    from stages.errors import InputError
    from store.plan import differences

    planned = plan.get("inputs", {}).get("source", {})
    if run is None or not planned.keys() >= {"name", "split", "n_rows", "image_size"}:
        return ""
    try:
        source = _spec(run, planned).open()
        found = [line.partition(":")[0] for line in differences(source_facts(source), planned)]
    except (InputError, OSError):
        return ""
    return f"its data set has changed: other {', '.join(found)}" if found else ""


def _spec(run: Run, planned: Mapping[str, Any]) -> SourceSpec:  # Any: JSON
    """Where a run found its images; raises ``InputError`` where they are no longer."""
    from typer.main import get_command

    from cli.app import app
    from stages.data.known import KNOWN
    from stages.data.registry import SourceSpec

    words, given = list(run.command), {}
    if words[:1] and words[0] in OF_IMAGES:
        command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]  # it is a group
        given = command.make_context(words[0], words[1:], resilient_parsing=True).params
    dataset = given.get("dataset") or planned["name"]
    limit = given["limit"] if given else planned["n_rows"]
    has_root = any(word.startswith("--data-root") for word in words)
    root = given.get("data_root") if has_root else run.environment.get("INTRO_PIPE_DATA")
    here = Path(run.folder, dataset)
    return SourceSpec(
        str(here) if here.exists() and dataset not in KNOWN else dataset,
        planned["split"],
        str(Path(run.folder, root)) if root else "",
        planned["image_size"][0],
        limit,
        labels=bool(planned.get("class_names")),
    )
