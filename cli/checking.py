"""Commands that check the contents of a store: verify, repair."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.completion import completing, names_in_store
from cli.output import emit, note, table
from cli.remedies import detail_with_remedy, our_errors, with_remedy
from cli.replay import Named, replayed
from pipeline.terminal import counted
from stages.verbs import STORE

if TYPE_CHECKING:
    from pipeline.journal import Run
    from store.artifacts import Artifact
    from store.catalog import FeatureStore
    from store.shardset import ShardSet
    from store.verify import Problem

Features = Annotated[
    list[str] | None,
    typer.Argument(
        help="Feature sets, maps, or folders that `corrupt` wrote. (default: all)",
        autocompletion=completing(names_in_store("features", "maps")),
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(
        epilog="Example: intro-pipe verify --probe cifar10c@resnet18", rich_help_panel=STORE
    )(verify)
    app.command(epilog="Example: intro-pipe repair cifar10c@resnet18", rich_help_panel=STORE)(
        options.grouped(repair)
    )


def verify(
    features: Features = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Also send some rows of each feature set through its network again and compare "
            "the results.",
        ),
    ] = False,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="Exit with code 1, too, if a shard is missing or a model, head, result or report "
            "is unfinished.",
        ),
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Verify every file against its checksum. Exit code 1 if anything is wrong.

    Missing shards are counted; only --complete makes them an error.

    With --probe, each network is also checked on the images of its set, as before an extraction.
    """
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    checked = _check(place, features or [])
    if probe:
        checked = _probed(place, checked)
    text = checked.text
    if checked.incomplete:
        text += f"\nincomplete: {checked.incomplete}"
        text += "" if complete else "; an error with --complete"
    emit(checked.to_dict(), text, as_json=as_json)
    if checked.wrong or (complete and checked.incomplete):
        sys.exit(1)


def repair(
    features: Features = None,
    store: options.Store = options.DEFAULT_STORE,
    *,
    overrides: options.Overrides,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Quarantine damaged shards and recompute them with the commands recorded in the journal.

    The damaged files are kept in the set's folder, under quarantine/. Models, heads and results are
    not repaired: remove them and create them again. Options that say where a command runs are not
    taken from the journal: pass them again.
    """
    from store.catalog import FeatureStore
    from store.errors import LeaseError
    from store.verify import repair as quarantine

    place = FeatureStore(store)
    checked = _check(place, features or [])
    taken: dict[str, list[int]] = {}
    n_busy = 0
    for name, shard_set, problems in checked.sets:
        damaged = {p.shard.index for p in problems if p.shard is not None and not p.is_harmless}
        is_damaged = any(p.needs_command for p in problems)
        if shard_set is not None and problems and not dry_run:
            try:
                quarantine(shard_set, problems)
            except LeaseError as error:  # the other sets can still be repaired
                note(str(error))
                n_busy += is_damaged
                continue
        if is_damaged:  # the same command also rewrites a lost plan and lost labels
            taken[name] = sorted(damaged)
    if not dry_run:
        _sweep_artifacts(checked.artifacts)
    note(checked.text)
    again = _commands_of(place, list(taken))
    named = Named(**asdict(overrides))
    n_repaired = 0
    for name, shards in taken.items():
        n_repaired += _recomputed(place, name, shards, again.get(name), named, dry_run=dry_run)
    n_others = sum(not problem.is_harmless for problem in checked.of_artifacts)
    n_damaged = len(taken) + n_busy
    n_left = n_damaged - n_repaired + n_others
    n_all, others = counted(n_damaged, "damaged set"), counted(n_others, "other problem")
    text = f"{n_repaired} of {n_all} repaired, {others}"
    emit({**checked.to_dict(), "taken_back": taken, "left": n_left}, text, as_json=as_json)
    if n_left:
        sys.exit(1)


def _sweep_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Delete the staged files that killed runs left in models, heads, results and reports."""
    from store.errors import LeaseError
    from store.verify import sweep

    for artifact in artifacts:
        try:
            if artifact.storage.staged():
                sweep(artifact.storage)
        except LeaseError as error:
            note(str(error))


def _recomputed(
    place: FeatureStore,
    name: str,
    shards: list[int],
    run: Run | None,
    named: Named,
    *,
    dry_run: bool,
) -> bool:
    """Rerun the command of a set whose damaged shards are quarantined; True if it is intact."""
    n_shards = counted(len(shards), "shard")
    note(f"{name}: {n_shards} {'would be ' if dry_run else ''}quarantined")
    if run is None:
        note(
            f"{name}: the journal does not record the command that made it: run that command again"
        )
        return False
    if Path(name).is_absolute() and run.verb == "corrupt":
        named = replace(named, out=name)  # a folder, which the user has named
    try:
        again = replayed(run, place.location, named)
        for line in again.notes():
            note(line)
        if dry_run:
            return False
        with redirect_stdout(sys.stderr):
            again.make(as_json=False)
    except our_errors() as error:
        note(f"{name}: {with_remedy(error)}")  # the set may be intact: a later step can fail
    checked = _check(place, [name])
    return not checked.wrong and not checked.missing_shards


@dataclass(frozen=True)
class _Checked:
    """The sets that were checked: name, set (None if its plan is lost) and problems of each."""

    sets: list[tuple[str, ShardSet | None, list[Problem]]]
    artifacts: list[Artifact]
    of_artifacts: list[Problem]

    @property
    def problems(self) -> list[Problem]:
        return [*self.of_artifacts, *(each for _, _, found in self.sets for each in found)]

    @property
    def wrong(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.is_harmless]

    @property
    def missing_shards(self) -> dict[str, int]:
        """Number of missing shards by set; complete sets are omitted."""
        missing = {
            name: len({p.shard.index for p in problems if p.shard is not None and p.is_harmless})
            for name, _, problems in self.sets
        }
        return {name: n for name, n in missing.items() if n}

    @cached_property
    def unfinished(self) -> list[str]:
        """Models, heads, results and reports without a card."""
        return [f"{each.kind} {each.name}" for each in self.artifacts if not each.is_complete()]

    @property
    def incomplete(self) -> str:
        """Summary of what is missing; empty if nothing is."""
        n_missing = sum(self.missing_shards.values())
        parts = [f"{counted(n_missing, 'shard')} missing"] * bool(n_missing)
        if self.unfinished:
            parts.append(f"{len(self.unfinished):,} unfinished ({', '.join(self.unfinished)})")
        text = ", ".join(parts)
        if failed := [each.storage.location for each in self.artifacts if _has_failed(each)]:
            text += f"; failed for good and can be removed: {', '.join(failed)}"
        return text

    @property
    def text(self) -> str:
        """One line per problem, and a summary."""
        n = len(self.artifacts)
        kinds = "1 model, head, result or report"
        kinds = kinds if n == 1 else f"{n:,} models, heads, results and reports"
        summary = (
            f"checked {counted(len(self.sets), 'set')} and {kinds}: "
            f"{counted(len(self.wrong), 'problem')}, "
            f"{counted(len(self.problems) - len(self.wrong), 'note')}"
        )
        if not self.problems:
            return summary
        shown = table(self.to_dict()["problems"], ["set_name", "kind", "key", "detail"])
        return f"{shown}\n{summary}"

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        rows = [
            {**asdict(each), "detail": detail_with_remedy(each), "harmless": each.is_harmless}
            for each in self.problems
        ]
        return {
            "problems": rows,
            "wrong": len(self.wrong),
            "missing_shards": self.missing_shards,
            "unfinished": self.unfinished,
        }


def _has_failed(artifact: Artifact) -> bool:
    """Whether an unfinished artifact cannot be finished, such as a head that collapsed."""
    from store.errors import DamagedError

    with suppress(DamagedError):  # a problem of its own
        return not artifact.is_complete() and artifact.failure() is not None
    return False


def _check(place: FeatureStore, features: Sequence[str]) -> _Checked:
    """Verify every file of these sets, or of the whole store if none is named."""
    from pipeline.progress import Progress
    from stages.contents import ARTIFACT_KINDS, SET_KINDS, resolved_set
    from store.shardset import RECEIPTS, ShardSet
    from store.storage import LocalStorage
    from store.verify import (
        verify_artifact,
        verify_feature_set,
        verify_files,
        verify_plans,
        verify_root,
    )

    if not features:
        place.require()
    folders = [name for name in features if (Path(name) / RECEIPTS).is_dir()]
    named = [resolved_set(place, name) for name in features if name not in folders]
    sets = named if features else [each for kind in SET_KINDS for each in place.sets(kind)]
    kinds = () if features else ARTIFACT_KINDS
    artifacts = [place.artifact(kind, name) for kind in kinds for name in place.begun(f"{kind}s")]
    checked: list[tuple[str, ShardSet | None, list[Problem]]] = [
        (problem.set_name, None, [problem])
        for kind in (() if features else SET_KINDS)
        for problem in verify_plans(place, kind)
    ]
    for folder in folders:
        written = ShardSet.open(LocalStorage(str(Path(folder).absolute())))
        checked.append((written.storage.location, written, list(verify_files(written))))
    with Progress("verify", sum(len(found) for found in sets), unit="rows") as progress:
        for found in sets:
            problems = list(verify_feature_set(found, progress.advance))
            checked.append((found.name, found.shard_set, problems))
    of_artifacts = [] if features else list(verify_root(place))
    of_artifacts += [problem for artifact in artifacts for problem in verify_artifact(artifact)]
    return _Checked(checked, artifacts, of_artifacts)


def _probed(place: FeatureStore, checked: _Checked) -> _Checked:
    """Add the problems that the probe of each feature set finds."""
    from store.catalog import FEATURES

    folders = {name: Path(found.storage.location) for name, found, _ in checked.sets if found}
    names = [name for name, folder in folders.items() if folder.parent.name == FEATURES]
    runs = _commands_of(place, names)
    probed = {name: _probe_problems(place, name, runs.get(name)) for name in names}
    sets = [
        (name, found, [*problems, *probed.get(name, [])]) for name, found, problems in checked.sets
    ]
    return replace(checked, sets=sets)


def _probe_problems(place: FeatureStore, name: str, run: Run | None) -> list[Problem]:
    """The problems that a probe finds; a set that cannot be probed counts as one problem."""
    from store.verify import Problem

    try:
        return list(_probe(place, name, run))
    except our_errors() as error:
        return [Problem(name, "not probed", "", str(error))]


def _probe(place: FeatureStore, name: str, run: Run | None) -> Iterator[Problem]:
    from cli.states import source_of
    from stages.errors import InputError
    from stages.reflection.feature_plan import planned_model
    from stages.reflection.recheck import differences_now
    from stages.sensing.models import weights_path
    from stages.sensing.trust import require_trust
    from store.verify import Problem

    found = place.resolve(name)
    model = planned_model(found.plan)
    require_trust(model.network, f"model {model.name}")
    if run is None:
        raise InputError(f"{name}: the journal does not record where its images are")
    source = source_of(run, found.plan["inputs"]["source"])
    for detail in differences_now(found, source, weights_path(place, model.name)):
        yield Problem(name, "other rows", "logits", detail)


def _commands_of(place: FeatureStore, names: Sequence[str]) -> dict[str, Run]:
    """The newest run of the store's journal that worked on each of these sets."""
    from pipeline.journal import newest_at

    found: dict[str, Run] = {}
    for where, (_, run) in newest_at(place.location).items():
        for name in {where, Path(where).name} & set(names):  # the store may have been moved
            found.setdefault(name, run)
    return found
