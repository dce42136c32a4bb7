"""Out-of-distribution detection from data sets to results: what is missing is extracted first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.journal import Journal
from pipeline.progress import Progress
from stages.applications.detection import (
    Comparison,
    Detection,
    Sides,
    check_sides,
    detect,
    result_of,
)
from stages.applications.detectors import DETECTORS, checked_detectors
from stages.applications.evaluation import Contender
from stages.applications.overlap import check_apart
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extract import Extract, extract
from stages.reflection.perturbation import Odin, Perturbation, Pgd
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from pipeline.executors import Executor


@dataclass(frozen=True)
class Attack:
    """What images go through before anything is told apart: see ``Pgd``; both sides, or none."""

    inside: Pgd
    outside: Pgd


@dataclass(frozen=True)
class Setting:
    """Which sets are told apart how.

    Attributes:
        inside: extracts the in-distribution images, as they are.
        outsides: those of other data sets, whose labels are left out unless they are f's classes.
        detectors: names in `detectors.DETECTORS`.
        contenders: heads beside f.
        odin: how ODIN moves images.
        attack: on both sides, before ODIN; None for images as they are.
        rows, n_resamples, seed: see ``Comparison``.
    """

    inside: Extract
    outsides: tuple[SourceSpec, ...]
    detectors: tuple[str, ...]
    contenders: tuple[Contender, ...]
    odin: Odin
    attack: Attack | None
    rows: int
    n_resamples: int
    seed: int

    def __post_init__(self) -> None:
        checked_detectors(self.detectors)
        if not self.outsides:
            raise InputError("ood: expected at least one out-of-distribution set, found none")
        names = [spec.open().name for spec in self.outsides]
        if len(set(names)) < len(names):
            raise InputError(f"ood: expected each set once, found {', '.join(names)}")


@dataclass(frozen=True)
class Planned:
    """A feature set that is there, or is to be made by a stage."""

    stage: Extract
    plan: Plan

    @property
    def name(self) -> str:
        """What it is called, or will be."""
        return f"{self.plan['name']}-{fingerprint(self.plan)}"


@dataclass(frozen=True)
class Cell:
    """One comparison: its sides as plans, and how they are compared."""

    sides: Sides
    comparison: Comparison


def labels_that_fit(spec: SourceSpec, class_names: tuple[str, ...]) -> SourceSpec:
    """A data set, without its labels where they are of other classes."""
    return replace(spec, labels=spec.open().class_names == class_names)


class Plans:
    """The plans of the feature sets that a setting needs; each data set is hashed once."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._made: dict[tuple[Any, ...], Planned] = {}  # Any: what tells the stages apart

    def cells(self) -> list[Cell]:
        """Every comparison, set by set."""
        setting = self.setting
        shared = (setting.rows, setting.n_resamples, setting.seed)
        return [
            Cell(self._sides(spec, name), Comparison(name, *shared))
            for spec in setting.outsides
            for name in checked_detectors(setting.detectors)
        ]

    def _sides(self, outside: SourceSpec, name: str) -> Sides:
        setting, detector = self.setting, DETECTORS[name]
        moved = (setting.odin,) if detector.is_perturbed else ()
        attack = setting.attack
        on_inside, on_outside = ((attack.inside,), (attack.outside,)) if attack else ((), ())
        inside = self._planned(setting.inside.source, (*on_inside, *moved))
        other = self._planned(outside, (*on_outside, *moved))
        if detector.fit is None:
            return Sides(inside, other)
        training = replace(setting.inside.source, split="train")
        return Sides(inside, other, self._planned(training, ()))

    def _planned(self, source: SourceSpec, perturbations: tuple[Perturbation, ...]) -> Planned:
        key = (source, perturbations)
        if key not in self._made:
            stage = replace(self.setting.inside, source=source, perturbations=perturbations)
            self._made[key] = Planned(stage, stage.plan())
        return self._made[key]


def cells_of(store: FeatureStore, setting: Setting) -> list[tuple[Cell, Artifact]]:
    """Every comparison of a setting and where its result lies, or will; nothing is computed.

    Raises:
        InputError: something does not fit; a data set that is compared holds images of the other.
    """
    cells = [
        (cell, result_of(store, cell.sides, setting.contenders, cell.comparison))
        for cell in Plans(setting).cells()
    ]
    for cell, _ in cells:
        check_sides(cell.sides, setting.contenders, cell.comparison)
    if any(not result.is_complete() for _, result in cells):
        check_apart(setting.inside.source.open(), [spec.open() for spec in setting.outsides])
    return cells


def missing_of(store: FeatureStore, cells: Sequence[tuple[Cell, Artifact]]) -> list[Planned]:
    """The feature sets that are to be made for the results that are not there."""
    needed = {
        each.name: each
        for cell, result in cells
        if not result.is_complete()
        for each in cell.sides.all
        if isinstance(each, Planned)
    }
    return [each for each in needed.values() if not _is_there(store, each)]


def _is_there(store: FeatureStore, planned: Planned) -> bool:
    there = store.find(planned.plan)
    return there is not None and there.shard_set.is_complete()


def detect_all(
    store: FeatureStore,
    setting: Setting,
    executor: Executor,
    journal: Journal,
    *,
    take_in: Callable[[], None] = lambda: None,
    say: Callable[[str], object] = lambda _: None,
) -> list[Detection]:
    """Make every result of a setting, and the features that are missing for it.

    Args:
        store: keeps both.
        setting: what is compared.
        executor: extracts.
        journal: begins when there is something to compute.
        take_in: brings the network into the store, see ``extract``.
        say: is told of each set that is extracted.

    Raises:
        InputError, StoreError, PipelineError: see the messages; what was finished is kept.
    """
    cells = cells_of(store, setting)
    for planned in missing_of(store, cells):
        feature_set, report = extract(store, planned.stage, executor, journal, take_in)
        failed = f", {report.n_failed_rows} not read" if report.n_failed_rows else ""
        say(f"extracted {feature_set.name}: {feature_set.n_rows:,} rows{failed}")
    found = []
    with Progress("detect", len(cells), unit="results") as progress:
        for cell, _ in cells:
            sides = _opened(store, cell.sides)
            found.append(detect(store, sides, setting.contenders, cell.comparison, journal=journal))
            progress.advance(1)
    return found


def _opened(store: FeatureStore, sides: Sides) -> Sides:
    """The sides as feature sets; as plans where they are gone: then the result is there."""

    def found(planned: Any) -> Any:  # Any: a Planned, or what it stands for
        there: FeatureSet | None = store.find(planned.plan)
        return there or planned

    training = None if sides.training is None else found(sides.training)
    return Sides(found(sides.inside), found(sides.outside), training)
