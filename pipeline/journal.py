"""The journal: one JSON-lines file per run, with the command, the events and the outcome."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import JournalError
from store.errors import WriteError
from store.locations import storage_at
from store.machine import ThisMachine
from store.plan import read_object
from store.storage import Log

FOLDER = "journal"
VARIABLES = "INTRO_PIPE_"
"""Prefix of the environment variables that a run depends on."""

TASKS = ("shard", "run")
"""Events that tell how a worker's task ended, and units of work; "run" is of active learning."""

ENDINGS = ("done", "refused", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Journal:
    """The file of one run; events are appended as they happen.

    A run may consist of many stages, like that of a recipe: they share one journal.
    """

    log: Log
    command: tuple[str, ...] = ()
    stage: Mapping[str, Any] | None = None  # Any: JSON
    data_root: str = ""
    resumes: "Run | None" = None

    @classmethod
    def of(
        cls,
        store: str,
        command: Sequence[str],
        stage: Mapping[str, Any] | None = None,
        data_root: str = "",
        resumes: "Run | None" = None,
    ) -> "Journal":
        """The journal of a run in a store. Nothing is written before ``begin``.

        Args:
            store: location of the store.
            command: the command line, without the name of the program, for people.
            stage: the stage that the run makes, as JSON; `resume` runs it again.
            data_root: folder of the data sets of the run.
            resumes: the run that this one continues; its command counts, not ``command``.
        """
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # Names sort by time; two runs of one process in the same second get two files.
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{nanoseconds:09d}"
        key = f"{FOLDER}/{stamp}-{os.getpid()}.jsonl"
        entered = resumes.command if resumes else tuple(command)
        return cls(storage_at(store).log(key), entered, stage, data_root, resumes)

    def begin(self) -> "Journal":
        """Append the event "started"; a second call does nothing."""
        if not self.is_begun():
            here, first = ThisMachine(), self.resumes
            recorded = {
                "stage": self.stage,
                "data_root": self.data_root,
                "resumes": first and first.first_name,
            }
            self.note(
                "started",
                command=list(self.command),
                folder=first.folder if first else str(Path.cwd()),
                environment={k: v for k, v in os.environ.items() if k.startswith(VARIABLES)},
                host=here.host,
                pid=here.pid,
                process_started=here.started(here.pid),
                **{key: value for key, value in recorded.items() if value},
            )
        return self

    def is_begun(self) -> bool:
        """Whether anything was written."""
        return self.log.exists()

    @contextmanager
    def outcome(self) -> Iterator["Journal"]:
        """Append how the block ends: "done", or an error, which is raised again.

        "refused": the same command would be refused again; "stopped": by Ctrl-C; else "failed".
        Nothing is written for a run that has not begun.
        """
        try:
            yield self
        except BaseException as error:
            if self.is_begun():
                with suppress(WriteError):  # a full disk: report the error of the block
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
    """A run according to its journal.

    ``outcome`` is one of ``ENDINGS``, "running" or, after a kill, "unfinished". ``name`` is the
    name of its journal file. ``command`` was entered in ``folder``, by the run that this one
    ``resumes`` if there is one. Runs of version 0.4 and before have no ``stage``.
    """

    command: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    outcome: str
    started: float
    name: str
    events: tuple[dict[str, Any], ...] = ()
    stage: Mapping[str, Any] | None = None
    data_root: str = ""
    resumes: str = ""

    @property
    def verb(self) -> str:
        """The verb of the stage or of the command; empty if there is neither."""
        return str(self.stage["stage"]) if self.stage else next(iter(self.command), "")

    @property
    def first_name(self) -> str:
        """The name of the run that this one resumed or repaired; else its own."""
        return self.resumes or self.environment.get("INTRO_PIPE_REPLAYED") or self.name

    @property
    def identities(self) -> set[str | tuple[str, ...]]:
        """What this run has in common with others that do the same."""
        found: set[str | tuple[str, ...]] = {self.first_name}
        if self.stage:
            found.add(json.dumps(self.stage, sort_keys=True))
        entered = (self.folder, *self.command)  # paths in a command are relative to its folder
        return found | ({entered} if self.command or not self.stage else set())


def runs(store: str) -> Iterator[Run]:
    """The runs of a store, newest first.

    Lines that a killed run left incomplete are skipped, and so are invalid ones: a store may come
    from someone else.
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
                PurePath(key).stem,
                tuple(events),
                first.get("stage"),
                first.get("data_root", ""),
                first.get("resumes", ""),
            )


def newest_at(store: str) -> dict[str, tuple[str, Run]]:
    """Each place that runs worked on, with the title of the newest work there and its run."""
    found: dict[str, tuple[str, Run]] = {}
    for run in runs(store):
        for event in run.events:
            if event["event"] == "work":
                found.setdefault(event["place"], (event["title"], run))
    return found


def last_unfinished(store: str) -> Run:
    """The newest run that neither it nor a later one brought to its end; else ``JournalError``."""
    done: set[str | tuple[str, ...]] = set()
    n_running = 0
    for run in runs(store):
        n_running += run.outcome == "running"
        if run.outcome in ("done", "refused"):
            done |= run.identities
        elif run.outcome != "running" and not done & run.identities:
            return run
    running = f" ({n_running} still running)" if n_running else ""
    raise JournalError(f"there is nothing to resume in {store}: every run has finished{running}")


def _ending(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return "refused" if isinstance(error, ValueError) else "failed"


def _state_of(started: dict[str, Any]) -> str:
    """State of a run without an outcome, as far as this machine can know."""
    here = ThisMachine()
    if started.get("host") != here.host:
        return "unfinished"
    since = here.started(started["pid"])
    return "running" if since and since == started.get("process_started") else "unfinished"


def _event(line: str) -> dict[str, Any] | None:
    """The event of a line, ``None`` if the line is incomplete or invalid."""
    try:
        event = read_object(line)
    except ValueError:
        return None
    facts = {"event": _is_word, "time": _is_number} | _FACTS.get(str(event.get("event")), {})
    if not all(key in event and fits(event[key]) for key, fits in facts.items()):
        return None
    later = _LATER if event["event"] == "started" else {}
    return event if all(fits(event[key]) for key, fits in later.items() if key in event) else None


def _is_word(value: object) -> bool:
    """Whether a value is a string that a system call accepts."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except ValueError:
        return False


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_word, value))


def _is_stage(value: object) -> bool:
    """Whether a value names a verb, and no text in it has a character that no system call takes."""
    if not (isinstance(value, dict) and _is_word(value.get("stage"))):
        return False
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return False
    return _is_word(text) and "\\u0000" not in text


def _is_environment(value: object) -> bool:
    """Only intro-pipe's own variables: others could name a program or a module search path."""
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
        isinstance(each, dict)
        and all(_is_count(each.get(key)) for key in keys)
        and _is_count(each.get("ticks", 0))  # version 0.4 and before do not count them
        for each in value
    )


_TASK: dict[str, Callable[[object], bool]] = {
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
    **dict.fromkeys(TASKS, _TASK),
    **{f"{task} failed": {**_TASK, "error": lambda text: isinstance(text, str)} for task in TASKS},
}
"""The checks of each event's fields, on which readers of journals rely."""

_LATER = {"stage": _is_stage, "data_root": _is_word, "resumes": _is_word}
"""The same for fields of "started" that journals of older versions lack."""
