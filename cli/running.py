"""Progress and outcome of runs: the parts of `status` that are read from journals."""

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
COMPLETED = "a later run completed its output"
OF_SEVERAL = ("run", "reproduce", "ood", "demo")
"""Verbs that make several outputs; a killed run may not have begun all of them."""

MAX_ERROR = 160
"""Characters of an error that are shown; `status --shards` and the journal have the rest."""


def runs_report(location: str) -> tuple[list[dict[str, Any]], str]:
    """The last runs and the progress of running ones, as rows and as text."""
    found = _last_runs(location)
    past = [
        {
            "outcome": run.outcome,
            "command": "intro-pipe " + " ".join(run.command),
            "why": f"{why}; {COMPLETED}" if why and is_completed_by(found[:at], run) else why,
        }
        for at, run in enumerate(found)
        for why in (ending_of(run),)
    ]
    lines = [
        {"outcome": outcome, "command": text}
        for row in past
        for outcome, text in ((row["outcome"], row["command"]), ("", row["why"]))
        if text
    ]
    text = f"\n\nlast runs, newest first\n{table(lines)}" if past else ""
    activity = [line for run in found if run.outcome == "running" for line in _lines(run.events)]
    if activity:
        text += "\n\nrunning\n" + "\n".join(activity)
    return past, text


def is_completed_by(newer: Sequence[Run], run: Run) -> bool:
    """Whether one of the newer runs did the same to its end, or completed the same output."""
    done = [each for each in newer if each.outcome == "done"]
    if any(each.identities & run.identities for each in done):
        return True
    completed = {place for each in done for place in _places(each)}
    return run.verb not in OF_SEVERAL and bool(_places(run)) and _places(run) <= completed


def _places(run: Run) -> set[str]:
    """The places that a run worked on."""
    return {event["place"] for event in run.events if event["event"] == "work"}


def ending_of(run: Run) -> str:
    """Why a run did not finish; empty if it finished or is still running."""
    error = str(run.events[-1].get("error", ""))
    short = error if len(error) <= MAX_ERROR else f"{error[:MAX_ERROR]}..."
    signal = error.rpartition(" ")[2]
    reasons = {
        "unfinished": "the run was killed",
        "stopped": f"stopped by {signal if signal in ('SIGTERM', 'SIGHUP') else 'Ctrl-C'}",
        "failed": short,
        "refused": short,
    }
    return reasons.get(run.outcome, "")


def shards_report(location: str) -> tuple[list[dict[str, Any]], str]:
    """Cost of each attempt at a shard in the newest run that has any, as rows and as text."""
    from pipeline.activity import costs_of
    from pipeline.journal import runs

    rows = next((rows for run in runs(location) if (rows := costs_of(run.events))), [])
    names = list(dict.fromkeys(name for row in rows for name in row if name != "work"))
    return rows, table(rows, names) if rows else "no run in this store has computed a shard"


def follow(location: str) -> None:
    """Print the progress of running runs repeatedly until none is running."""
    is_terminal = sys.stdout.isatty()
    while running := [run for run in _last_runs(location) if run.outcome == "running"]:
        lines = [line for run in running for line in _lines(run.events)]
        # Move to the top, clear the screen, print the lines.
        print("\033[H\033[J" * is_terminal + printable("\n".join(lines)), flush=True)
        time.sleep(WATCH_EVERY_S)
    print("nothing is running")


def _last_runs(location: str) -> list[Run]:
    from pipeline.journal import runs

    return [run for _, run in zip(range(N_RUNS), runs(location), strict=False)]


def _lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    from pipeline.activity import activity_of

    found = activity_of(events, time.time())
    return found.lines() if found else []
