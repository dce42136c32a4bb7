"""Progress of a run according to its journal, for other shells and for later."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.journal import TASKS
from pipeline.progress import duration

QUIET_S = 120.0
"""Seconds without progress after which a worker is reported as possibly hanging."""

PARTS = {"run": "round"}
"""Unit of a run -> what its workers count, if that is not rows."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lane:
    """A worker, its process, the task it computes, and how long ago its last progress was."""

    number: int
    task: int
    n_rows: int
    seconds: float
    where: str = ""

    def line(self, unit: str) -> str:
        """One line of text, with an arrow if the worker may be hanging."""
        on = f" on {self.where}" if self.where else ""
        arrow = " <- may be hanging" if self.seconds > QUIET_S else ""
        row = PARTS.get(unit, "row")
        return (
            f"  worker {self.number}{on}: {unit} {self.task}, at {row} {self.n_rows:,} "
            f"for {duration(self.seconds)}{arrow}"
        )


@dataclass(frozen=True, slots=True)
class Activity:
    """The part of a run that started last, such as a set of shards, or a loop of epochs.

    Attributes:
        title: name of the work.
        unit: "shard", "epoch", ...
        n_units: number of units to do.
        n_done: number of units that this run has done.
        n_failures: number of failed attempts.
        last_error: error of the last failed attempt.
        lanes: the busy workers; empty if none were reported.
        seconds: time since the last event.
    """

    title: str
    unit: str
    n_units: int
    n_done: int
    n_failures: int
    last_error: str
    lanes: tuple[Lane, ...]
    seconds: float

    def lines(self) -> list[str]:
        """Lines of text, with arrows at possible problems."""
        summary = f"{self.title}: {self.n_done} of {self.n_units} {self.unit}s in this run"
        if self.n_failures:
            summary += f", {self.n_failures} attempts failed (last: {self.last_error})"
        lanes = [lane.line(self.unit) for lane in self.lanes]
        quiet = f"  <- no event for {duration(self.seconds)}"
        return [summary, *lanes, *([quiet] if self.seconds > QUIET_S else [])]


def activity_of(events: Sequence[Event], now: float) -> Activity | None:
    """The current activity of a run, or ``None`` before its first work started."""
    start = max((at for at, event in enumerate(events) if event["event"] == "work"), default=None)
    if start is None:
        return None
    work, since = events[start], events[start:]
    unit = work["unit"]
    failures = [event for event in since if event["event"] == f"{unit} failed"]
    return Activity(
        work["title"],
        unit,
        work["units"],
        sum(event["event"] == unit for event in since),
        len(failures),
        str(failures[-1].get("error", "")) if failures else "",
        _lanes(since, now),
        now - since[-1]["time"],
    )


def _lanes(events: Sequence[Event], now: float) -> tuple[Lane, ...]:
    """The workers as last reported, without those whose task has ended since."""
    since: dict[tuple[int, int, int, int], float] = {}  # lane, task, rows, ticks -> first seen
    held: dict[int, tuple[int, int, int, int]] = {}
    where: dict[int, str] = {}
    for event in events:
        if event["event"] == "at work":
            for each in event["lanes"]:
                place = (each["lane"], each["shard"], each["rows"], each.get("ticks", 0))
                since.setdefault(place, event["time"])
                held[each["lane"]] = place
                where[each["lane"]] = each.get("where", "")
        elif event["event"].removesuffix(" failed") in TASKS:
            held.pop(event["lane"], None)
    return tuple(
        Lane(lane, place[1], place[2], now - since[place], where[lane])
        for lane, place in sorted(held.items())
    )


def costs_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row per attempt at a task: where it ran, how long it took, and how it ended."""
    attempts: Counter[tuple[str, int]] = Counter()
    rows, title = [], ""
    for event in events:
        if event["event"] == "work":
            title = event["title"]
        if event["event"].removesuffix(" failed") in TASKS:
            attempts[title, event["shard"]] += 1
            rows.append(
                {
                    "work": title,
                    "shard": event["shard"],
                    "attempt": attempts[title, event["shard"]],
                    "where": event.get("where", ""),
                    "seconds": event["seconds"],
                    **_costs_in(event),
                    "error": event.get("error", ""),
                }
            )
    return rows


def _costs_in(event: Event) -> dict[str, float]:
    """Seconds by kind of work; empty if none were recorded."""
    costs = event.get("costs")
    return costs if isinstance(costs, dict) else {}
