"""The journal: one JSON-lines file per run, with the command, the events and the outcome."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import JournalError
from store.errors import WriteError
from store.machine import ThisMachine
from store.plan import read_object
from store.storage import Log, storage_at

FOLDER = "journal"
VARIABLES = "INTRO_PIPE_"
"""Prefix of the environment variables that a run depends on."""


ENDINGS = ("done", "refused", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Journal:
    """The file of one run; events are appended as they happen.

    A run may be many stages, as a recipe is: they share its journal, and the run ends once.
    """

    log: Log
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: str, command: Sequence[str]) -> "Journal":
        """The journal of a run of ``command`` in a store. Nothing is written before ``begin``."""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # Names sort by time; two runs of one process in the same second get two files.
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{nanoseconds:09d}"
        key = f"{FOLDER}/{stamp}-{os.getpid()}.jsonl"
        return cls(storage_at(store).log(key), tuple(command))

    def begin(self) -> "Journal":
        """Write down that the run has work to do; a second call does nothing."""
        if not self.is_begun():
            here = ThisMachine()
            self.note(
                "started",
                command=list(self.command),
                folder=str(Path.cwd()),
                environment={k: v for k, v in os.environ.items() if k.startswith(VARIABLES)},
                host=here.host,
                pid=here.pid,
                process_started=here.started(here.pid),
            )
        return self

    def is_begun(self) -> bool:
        """Whether anything was written down."""
        return self.log.exists()

    @contextmanager
    def outcome(self) -> Iterator["Journal"]:
        """Note how the block ends: "done", or with the error that goes on rising.

        "refused": the same command would be refused again; "stopped": by Ctrl-C; else "failed".
        A run that never began leaves nothing.
        """
        try:
            yield self
        except BaseException as error:
            if self.is_begun():
                with suppress(WriteError):  # a full disk: that of the block is the one to tell
                    self.note(_ending(error), error=f"{type(error).__name__}: {error}")
                    self.log.flush()
            raise
        if self.is_begun():
            self.note("done")
            self.log.flush()

    def note(self, event: str, **facts: Any) -> None:
        """Append an event; raises ``WriteError``."""
        self.log.add(json.dumps({"time": round(time.time(), 3), "event": event, **facts}))


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its journal tells it.

    ``outcome`` is one of ``ENDINGS``, "running" or, after a kill, "unfinished".
    """

    command: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    outcome: str
    started: float
    events: tuple[dict[str, Any], ...] = ()


def runs(store: str) -> Iterator[Run]:
    """The runs of a store, newest first; torn lines of a killed run are passed over.

    So is what is no line of ours: a store may come from someone else.
    """
    storage = storage_at(store)
    keys = [key for key in storage.keys(FOLDER) if key.endswith(".jsonl") and storage.size(key)]
    for key in reversed(keys):
        lines = storage.read(key).decode("utf-8", "replace").split("\n")
        events = [event for line in lines if (event := _event(line))]
        if events and events[0]["event"] == "started":
            first, last = events[0], events[-1]["event"]
            outcome = last if last in ENDINGS else _state_of(first)
            yield Run(
                tuple(first["command"]),
                first["folder"],
                first["environment"],
                outcome,
                first["time"],
                tuple(events),
            )


def newest_at(store: str) -> dict[str, tuple[str, Run]]:
    """Each place that runs worked at, with the title of the last one's work there and that run."""
    found: dict[str, tuple[str, Run]] = {}
    for run in runs(store):
        for event in run.events:
            if event["event"] == "work":
                found.setdefault(event["place"], (event["title"], run))
    return found


def last_unfinished(store: str) -> Run:
    """The newest run that neither it nor a later one brought to its end; else ``JournalError``."""
    done: set[tuple[str, ...]] = set()
    n_running = 0
    for run in runs(store):
        n_running += run.outcome == "running"
        if run.outcome in ("done", "refused"):
            done.add(run.command)
        elif run.outcome != "running" and run.command not in done:
            return run
    running = f" ({n_running} still running)" if n_running else ""
    raise JournalError(f"there is nothing to resume in {store}: every run has ended well{running}")


def _ending(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return "refused" if isinstance(error, ValueError) else "failed"


def _state_of(started: dict[str, Any]) -> str:
    """Whether a run without an outcome is still going on, as far as this machine can tell."""
    here = ThisMachine()
    if started.get("host") != here.host:
        return "unfinished"
    since = here.started(started["pid"])
    return "running" if since and since == started.get("process_started") else "unfinished"


def _event(line: str) -> dict[str, Any] | None:
    """The event of a line, ``None`` where the line is torn or says something else."""
    try:
        event = read_object(line)
    except ValueError:
        return None
    facts = {"event": _is_word, "time": _is_number} | _FACTS.get(str(event.get("event")), {})
    return event if all(key in event and fits(event[key]) for key, fits in facts.items()) else None


def _is_word(value: object) -> bool:
    """Whether a value can be a word of a command: whether a system call takes it."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except ValueError:
        return False


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_word, value))


def _is_environment(value: object) -> bool:
    """Variables of ours alone: any other could name a program, or where modules are looked for."""
    return isinstance(value, dict) and all(
        _is_word(name) and name.startswith(VARIABLES) and _is_word(text)
        for name, text in value.items()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e12


def _is_count(value: object) -> bool:
    return type(value) is int and _is_number(value)


def _are_lanes(value: object) -> bool:
    keys = ("lane", "shard", "rows")
    return isinstance(value, list) and all(
        isinstance(each, dict) and all(_is_count(each.get(key)) for key in keys) for each in value
    )


_SHARD: dict[str, Callable[[object], bool]] = {
    "lane": _is_count,
    "shard": _is_count,
    "seconds": _is_number,
}
_FACTS: dict[str, dict[str, Callable[[object], bool]]] = {
    "started": {
        "command": _are_words,
        "folder": _is_word,
        "environment": _is_environment,
        "pid": _is_count,
    },
    "work": {"title": _is_word, "place": _is_word, "unit": _is_word, "units": _is_count},
    "at work": {"lanes": _are_lanes},
    "shard": _SHARD,
    "shard failed": {**_SHARD, "error": lambda value: isinstance(value, str)},
}
"""What those who read journals take for granted, by event."""
