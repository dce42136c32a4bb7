"""The runs that ``resume`` and ``repair`` continue: stages, read from the journal.

The journal may come from someone else. Therefore its values are validated, only the user chooses
where to run and what to write outside the store, code runs only if the user has named it before,
and the folder of the run is only used to look up data, never as the working directory.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Overrides
from stages.verbs import MODULES, stage_of

if TYPE_CHECKING:
    from pipeline.errors import JournalError
    from pipeline.journal import Run
    from pipeline.stage import Stage


@dataclass(frozen=True, slots=True)
class Named(Overrides):
    """The options that the user passes to ``resume`` or ``repair``."""

    out: Annotated[
        str | None, typer.Option("--out", help="Output folder of the run, if it had --out.")
    ] = None


@dataclass(frozen=True, slots=True)
class Again:
    """A run to continue.

    Attributes:
        run: the run that is continued.
        asked: its stage, with absolute paths.
        store: location of the store.
        data_root: folder of the data sets.
        execution: where the work runs, as far as the user says.
        unused: options of the user that the run does not have.
    """

    run: Run
    asked: Stage
    store: str
    data_root: str
    execution: Mapping[str, Any]  # Any: the values of options
    unused: Sequence[str]

    @property
    def ignored(self) -> list[str]:
        """Options of the recorded command that say where it ran and are not taken from it."""
        from pipeline.workspace import Execution

        names = [f"--{name}" for name in Execution.model_fields if name not in self.execution]
        return _parted(self.run.command, names)[1]

    def notes(self) -> list[str]:
        """Lines to print before the work begins."""
        lines = [f"started in {self.run.folder}: {_shown(self.run, self.store)}"]
        if self.ignored:
            lines.append(
                f"not taken from the journal: {shlex.join(self.ignored)}; to use these options, "
                "pass them to this command"
            )
        if self.unused:
            lines.append(f"{self.run.verb} does not use {', '.join(self.unused)}")
        return lines

    def make(self, *, as_json: bool) -> None:
        """Make what is missing, and print it as the command does, as JSON if that had ``--json``.

        Raises what the command raises, and ``InputError`` for code that the user has not named.
        """
        from cli.verbs import make_and_print, parsed
        from pipeline.workspace import Execution, Workspace
        from stages.sensing.trust import require_trust
        from store.catalog import FeatureStore

        for network in self.asked.networks():
            require_trust(network, "the journal")
        workspace = Workspace(
            FeatureStore(self.store),
            self.data_root,
            parsed(Execution, self.execution),
            command=self.run.command,
            resumes=self.run,
            named_by="the journal",
        )
        as_json = as_json or "--json" in self.run.command
        make_and_print(self.asked, workspace, dry_run=False, as_json=as_json)


def replayed(run: Run, location: str, named: Named) -> Again:
    """The work of a run, as far as a journal may define it, with the options of the user.

    Raises:
        JournalError: it is not a known stage, names a URL or a pipe, or writes to a place outside
            the store that the user has not named.
    """
    from pipeline.workspace import Execution
    from stages.data.places import located

    refuse = partial(_not_ours, run, location)
    find = partial(_place, run.folder, location, refuse)
    stage, fields, theirs = _recorded(run, find, refuse)
    root = _data_root(run, theirs, named)
    outputs = _outputs(stage)
    values = {key: value for key, value in fields.items() if key not in outputs}
    _refuse_to_write(stage, fields, root, named, refuse)
    if named.out:
        values |= dict.fromkeys(outputs, named.out)
    asked = located(_read(stage, values, refuse), find, root)
    known = {*stage.runs_with, *outputs}
    mine = {option: value for option, value in asdict(named).items() if value is not None}
    unused = [f"--{option.replace('_', '-')}" for option in mine if option not in known]
    where = {key: mine[key] for key in Execution.model_fields if key in mine and key in known}
    return Again(run, asked, location, str(root), where, unused)


def images_of(run: Run, name: str, n_rows: int) -> tuple[str, Path, int | None, tuple[str, ...]]:
    """Where a run found a data set, and which part of it was used.

    Returns its name or path, the data root, the number of rows (``None`` for all), and the selected
    corruptions (empty for all).

    Args:
        run: any run, also of an unknown command.
        name: of the data set, for runs that name none (such as a recipe, which has many).
        n_rows: rows that it had, for the same runs.

    Raises:
        JournalError: it is no place that a journal may name.
    """
    from stages.data.places import data_set

    refuse = partial(_not_ours, run, "")
    find = partial(_place, run.folder, "", refuse)
    fields: Mapping[str, Any] = {}
    theirs = ""
    if run.verb in MODULES:
        stage, fields, theirs = _recorded(run, find, refuse)
        _read(stage, fields, refuse)
    root = _data_root(run, theirs, Named())
    if dataset := fields.get("dataset"):
        selects = stage_of(run.verb).makes == "features"
        corruptions = tuple(fields.get("corruptions") or ()) if selects else ()
        return data_set(dataset, find, root), root, fields.get("limit"), corruptions
    return data_set(name, find, root), root, n_rows, ()


Refuse = Callable[[str], "JournalError"]
Values = Mapping[str, Any]  # Any: JSON


def _recorded(
    run: Run, find: Callable[[str], str], refuse: Refuse
) -> tuple[type[Stage], Values, str]:
    """The class of a run's stage, its fields, and the data root; raises ``JournalError``."""
    from cli.old_journals import options_in, stage_in

    if run.verb not in MODULES:
        raise refuse(f"expected one of {', '.join(MODULES)}")
    stage = stage_of(run.verb)
    if run.stage is not None:
        return stage, _fields(run.stage), run.data_root
    try:
        options = options_in(run.command)
    except ValueError as error:
        raise refuse(str(error)) from error
    found = stage_in(stage, options, find)
    return stage, _fields(found.to_json()), options.get("data_root") or ""


def _fields(recorded: Values) -> Values:
    """Every field: a default that has changed since then has no effect on the run."""
    return {key: value for key, value in recorded.items() if key != "stage"}


def _read(stage: type[Stage], values: Values, refuse: Refuse) -> Stage:
    """The stage with these fields; raises ``JournalError``."""
    from pydantic import ValidationError

    from cli.verbs import refusal

    try:
        return stage.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise refuse(str(refusal(stage, error))) from error


def _outputs(stage: type[Stage]) -> list[str]:
    """The fields that name a folder to write."""
    from pipeline.fields import Place, mark_of

    fields = stage.model_fields
    return [key for key in fields if mark_of(fields[key], Place) is Place.OUTPUT]


def _refuse_to_write(
    stage: type[Stage], fields: Values, root: Path, named: Named, refuse: Refuse
) -> None:
    """Raise ``JournalError`` for a place outside the store that the user has not named."""
    from stages.data.known import data_root_path

    places = {f"--{key}": str(fields[key]) for key in _outputs(stage) if fields.get(key)}
    if fields.get("ask"):
        places.setdefault("--out", "to-label")  # it always writes a list, by default to this folder
    if named.out:
        places = {}
    is_below_root = stage.makes == "recipe" or (
        stage.makes == "images" and not (named.out and not fields.get("to"))
    )
    if is_below_root and root != data_root_path(named.data_root):
        places["--data-root"] = str(root)
    if places:
        options = [word for place in places.items() for word in place]
        raise refuse(
            "it writes outside the store, and the place cannot be taken from a journal: pass it "
            f"to this command, for example {shlex.join(options)}"
        )


def _not_ours(run: Run, location: str, why: str) -> JournalError:
    from pipeline.errors import JournalError

    shown = _shown(run, location)
    return JournalError(f"the journal contains `{shown}`: {why}; run the command yourself")


def _shown(run: Run, location: str) -> str:
    """The command of a run as it would be entered today; the stage if a program made it."""
    verb, *words = _parted(run.command, ["--store"])[0] or [""]
    store = [f"--store={location}"] if location else []  # the store may have been moved
    return shlex.join(["intro-pipe", verb, *store, *words]) if verb else json.dumps(run.stage)


def _parted(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command without these options, and the options with their values."""
    others, taken = [], []
    rest = iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if option in options:
            taken.append(word if equals else f"{word}={next(rest, '')}")
        else:
            others.append(word)
    return others, taken


def _data_root(run: Run, theirs: str, named: Named) -> Path:
    """The user's data root if one is named, else that of the run."""
    from stages.data.known import DEFAULT_DATA_ROOT, data_root_path
    from store.disk import spelled_out

    if named.data_root:
        return data_root_path(named.data_root)
    given = theirs or run.environment.get("INTRO_PIPE_DATA") or DEFAULT_DATA_ROOT
    return Path(run.folder, spelled_out(given)).absolute()


def _place(folder: str, store: str, refuse: Refuse, path: str) -> str:
    """The full path; raises ``JournalError`` for a URL outside the store and for a pipe."""
    from stages.data.places import full_path, is_fetched

    place = full_path(path, folder)
    if is_fetched(place, store):
        raise refuse(f"a URL to fetch cannot be taken from a journal ({path})")
    if Path(place).exists() and not (Path(place).is_file() or Path(place).is_dir()):
        raise refuse(f"{path} is a pipe or a device, expected a file")  # it may never end
    return place
