"""What a run does, or did, as its journal tells it: for who looks from another shell, or later."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.progress import duration

QUIET_S = 120.0
"""A worker that has got no further for so long may hang."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lane:
    """A worker, the shard that it holds, for how long it has stood at this row, and its process."""

    number: int
    shard: int
    n_rows: int
    seconds: float
    where: str = ""

    def line(self) -> str:
        """The same for people, with an arrow where it has stood still for long."""
        on = f" on {self.where}" if self.where else ""
        odd = " <- it may hang" if self.seconds > QUIET_S else ""
        return (
            f"  worker {self.number}{on}: shard {self.shard}, row {self.n_rows:,} of it, "
            f"for {duration(self.seconds)}{odd}"
        )


@dataclass(frozen=True, slots=True)
class Activity:
    """The last piece of work of a run: a set of shards, or a loop of epochs.

    Attributes:
        title: what it is called.
        unit: "shard", "epoch".
        n_units, n_done: of them, and how many this run has done.
        n_failures: attempts that failed.
        last_error: of the last of these.
        lanes: who holds what; empty where nobody has told.
        seconds: since the last sign of life.
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
        """The same for people, what is odd marked with an arrow."""
        told = f"{self.title}: {self.n_done} of {self.n_units} {self.unit}s in this run"
        if self.n_failures:
            told += f", {self.n_failures} attempts failed (last: {self.last_error})"
        lanes = [lane.line() for lane in self.lanes]
        quiet = f"  <- nothing for {duration(self.seconds)}"
        return [told, *lanes, *([quiet] if self.seconds > QUIET_S else [])]


def activity_of(events: Sequence[Event], now: float) -> Activity | None:
    """What the events of a run say it is at; None before its first piece of work."""
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
    """Where the workers were when last told, unless their shard has ended since."""
    since: dict[tuple[int, int, int], float] = {}  # lane, shard, rows -> when first seen there
    held: dict[int, tuple[int, int, int]] = {}
    where: dict[int, str] = {}
    for event in events:
        if event["event"] == "at work":
            for each in event["lanes"]:
                place = (each["lane"], each["shard"], each["rows"])
                since.setdefault(place, event["time"])
                held[each["lane"]] = place
                where[each["lane"]] = each.get("where", "")
        elif event["event"] in ("shard", "shard failed"):
            held.pop(event["lane"], None)
    return tuple(Lane(*held[lane], now - since[held[lane]], where[lane]) for lane in sorted(held))


def costs_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A row for each attempt at a shard: what it cost, where it ran, how it ended."""
    attempts: Counter[tuple[str, int]] = Counter()
    rows, title = [], ""
    for event in events:
        if event["event"] == "work":
            title = event["title"]
        if event["event"] in ("shard", "shard failed"):
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
    """Seconds by kind of work, as far as they are told."""
    costs = event.get("costs")
    return costs if isinstance(costs, dict) else {}
