"""Commands that hold a store against what it vouches for: verify, repair."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, note, table
from cli.runs import command_of

if TYPE_CHECKING:
    from pipeline.journal import Run
    from store.artifacts import Artifact
    from store.catalog import FeatureStore
    from store.shardset import ShardSet
    from store.verify import Problem

Features = Annotated[
    list[str] | None,
    typer.Argument(help="Feature sets, or folders that `corrupt` wrote. (default: all there is)"),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe verify cifar10c@resnet18")(verify)
    app.command(epilog="Example: intro-pipe repair cifar10c@resnet18")(repair)


def verify(
    features: Features = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Read every byte and hold it against the receipts. Exit code 1 where something is wrong."""
    from store.catalog import FeatureStore

    checked = _check(FeatureStore(store), features or [])
    emit(checked.to_dict(), checked.text, as_json=as_json)
    if checked.wrong:
        sys.exit(1)


def repair(
    features: Features = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Take hurt shards back, and give the commands again that made them: they compute only those.

    The hurt files are kept in the set's folder, under quarantine/.
    Models, heads and results are not touched: remove them, and make them again.
    """
    from store.catalog import FeatureStore
    from store.errors import LeaseError
    from store.verify import repair as take_back

    place = FeatureStore(store)
    checked = _check(place, features or [])
    taken: dict[str, list[int]] = {}
    n_busy = 0
    for name, shard_set, problems in checked.sets:
        hurt = {p.shard.index for p in problems if p.shard is not None and not p.is_harmless}
        is_hurt = any(p.needs_command for p in problems)
        if shard_set is not None and problems and not dry_run:
            try:
                take_back(shard_set, problems)
            except LeaseError as error:  # the others can be mended all the same
                note(str(error))
                n_busy += is_hurt
                continue
        if is_hurt:  # the same command writes a lost plan and lost labels too
            taken[name] = sorted(hurt)
    if not dry_run:
        _sweep_artifacts(checked.artifacts)
    note(checked.text)
    again = _commands_of(place, list(taken))
    n_mended = 0
    for name, shards in taken.items():
        n_mended += _computed_again(place, name, shards, again.get(name), dry_run=dry_run)
    n_others = sum(not problem.is_harmless for problem in checked.of_artifacts)
    n_hurt = len(taken) + n_busy
    n_left = n_hurt - n_mended + n_others
    text = f"{n_mended} of {n_hurt} hurt sets mended, {n_others} other problems"
    emit({**checked.to_dict(), "taken_back": taken, "left": n_left}, text, as_json=as_json)
    if n_left:
        sys.exit(1)


def _sweep_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Drop what kills have left staged in models, heads, results and reports."""
    from store.errors import LeaseError
    from store.verify import sweep

    for artifact in artifacts:
        try:
            if artifact.storage.staged():
                sweep(artifact.storage)
        except LeaseError as error:
            note(str(error))


def _computed_again(
    place: FeatureStore, name: str, shards: list[int], run: Run | None, *, dry_run: bool
) -> bool:
    """Give the command of a set again, after its hurt shards were taken back; says if it ended."""
    note(f"{name}: {len(shards)} shards {'would be ' if dry_run else ''}taken back")
    if run is None:
        note(f"{name}: the journal does not know what made it: give that command again")
        return False
    command, environment = command_of(run, place.location)
    note(f"in {run.folder}: intro-pipe {' '.join(run.command)}")
    if dry_run:
        return False
    ended = subprocess.run(command, cwd=run.folder, env=environment, stdout=sys.stderr, check=False)
    return ended.returncode == 0 and not _check(place, [name]).wrong


@dataclass(frozen=True)
class _Checked:
    """What was looked at: name, set (None where its plan is lost) and problems of each."""

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
    def text(self) -> str:
        """A line for each problem, and the sum."""
        summary = (
            f"checked {len(self.sets)} sets and {len(self.artifacts)} models, heads, results and "
            f"reports: {len(self.wrong)} wrong, {len(self.problems) - len(self.wrong)} to note"
        )
        if not self.problems:
            return summary
        shown = table(self.to_dict()["problems"], ["set_name", "kind", "key", "detail"])
        return f"{shown}\n{summary}"

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        from dataclasses import asdict

        rows = [asdict(each) | {"harmless": each.is_harmless} for each in self.problems]
        return {"problems": rows, "wrong": len(self.wrong)}


def _check(place: FeatureStore, features: Sequence[str]) -> _Checked:
    """Read all bytes of these sets, or of the whole store where none is named."""
    from pathlib import Path

    from pipeline.progress import Progress
    from store.catalog import ARTIFACT_KINDS
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
    named = [place.resolve(name) for name in features if name not in folders]
    sets = named if features else list(place.feature_sets())
    kinds = () if features else ARTIFACT_KINDS
    artifacts = [place.artifact(kind, name) for kind in kinds for name in place.begun(f"{kind}s")]
    checked: list[tuple[str, ShardSet | None, list[Problem]]] = [
        (problem.set_name, None, [problem]) for problem in ([] if features else verify_plans(place))
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


def _commands_of(place: FeatureStore, names: Sequence[str]) -> dict[str, Run]:
    """The newest run of the store's journal that worked on each of these sets."""
    from pathlib import PurePath

    from pipeline.journal import newest_at

    found: dict[str, Run] = {}
    for where, (_, run) in newest_at(place.location).items():
        for name in {where, PurePath(where).name} & set(names):  # a store may have been moved
            found.setdefault(name, run)
    return found
