"""What runs do and did, on the screen: the parts of `status` that come from journals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import table
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pipeline.journal import Run

N_RUNS = 10
WATCH_EVERY_S = 2.0


def runs_told(location: str) -> tuple[list[dict[str, Any]], str]:
    """The last runs and what those at work do, as rows and as text."""
    found = _last_runs(location)
    past = [
        {"outcome": run.outcome, "command": "intro-pipe " + " ".join(run.command)} for run in found
    ]
    text = f"\n\nlast runs, newest first\n{table(past)}" if past else ""
    activity = [line for run in found if run.outcome == "running" for line in _lines(run.events)]
    if activity:
        text += "\n\nat work\n" + "\n".join(activity)
    return past, text


def shards_told(location: str) -> tuple[list[dict[str, Any]], str]:
    """What each attempt at a shard of the newest run that had some cost, as rows and as text."""
    from pipeline.activity import costs_of
    from pipeline.journal import runs

    rows = next((rows for run in runs(location) if (rows := costs_of(run.events))), [])
    names = list(dict.fromkeys(name for row in rows for name in row if name != "work"))
    return rows, table(rows, names) if rows else "no run in this store has computed a shard"


def follow(location: str) -> None:
    """Show what the runs at work do, again and again, until none is at work."""
    is_terminal = sys.stdout.isatty()
    while running := [run for run in _last_runs(location) if run.outcome == "running"]:
        lines = [line for run in running for line in _lines(run.events)]
        # Home, the lines, and nothing of what stood there before.
        print("\033[H\033[J" * is_terminal + printable("\n".join(lines)), flush=True)
        time.sleep(WATCH_EVERY_S)
    print("no run is at work")


def _last_runs(location: str) -> list[Run]:
    from pipeline.journal import runs

    return [run for _, run in zip(range(N_RUNS), runs(location), strict=False)]


def _lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    from pipeline.activity import activity_of

    found = activity_of(events, time.time())
    return found.lines() if found else []
