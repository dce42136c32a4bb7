"""The card of a result that compares f with heads: an evaluation, or a detection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from stages.errors import InputError
from stages.introspection.head_card import HeadCard
from stages.reflection.feature_plan import PerturbationFacts
from stages.typed import known, typed
from store.artifacts import Artifact

OF_DETECTIONS = ("against", "training", "detector", "group", "perturbations")
OF_EVALUATIONS = ("n_bins",)
"""Facts that only one of the two has."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images that were compared."""

    name: str
    split: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class BesideSet:
    """A second feature set of the same images.

    Attributes:
        model: its network.
        labels: the predictors that read it; the first one is its f.
    """

    features: str
    model: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """The sample columns that group the rows, and the number of groups; one without columns."""

    columns: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonCard:
    """A comparison, in the order of its card.

    Attributes:
        features: feature set of the images; of the in-distribution images in a detection.
        beside: second feature set of an evaluation; not in the card if there is none.
        against, training: feature sets of the other images, and of those that a detector is fitted
            to.
        rows: number of rows, of each side in a detection.
        group: group of the other images when the result was made, such as near or far.
        perturbations: side -> perturbations of its images in order, as JSON.
        contenders: label -> head.
        seeds: label -> seeds; the label of f is included.
        left_out_rows: label -> number of rows that no metric counts.
        n_bins: number of confidence bins.
        definitions: name of a metric or detector -> its definition.
        statistics: how cells, seeds and resamples were combined; empty in cards of version 0.2.
        versions: library -> its version.
        seconds: how long the comparison took.
    """

    title: str
    features: str
    beside: BesideSet | None = None
    against: str | None = None
    training: str | None = None
    model: str
    dataset: Dataset
    rows: int
    cells: Cells
    detector: str | None = None
    group: str | None = None
    perturbations: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    contenders: Mapping[str, HeadCard]
    seeds: Mapping[str, tuple[int, ...]]
    left_out_rows: Mapping[str, int]
    n_bins: int | None = None
    n_resamples: int
    bootstrap_seed: int
    definitions: Mapping[str, str]
    statistics: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str]
    seconds: float

    @property
    def attack(self) -> PerturbationFacts | None:
        """The PGD attack on both sides, if there was one."""
        for step in self.perturbations.get("inside", ())[:1]:
            facts = typed(PerturbationFacts, step, "card of a result: perturbations")
            return facts if facts.kind == "pgd" else None
        return None

    @property
    def others(self) -> tuple[str, ...]:
        """The contenders beside f: heads, and f of a second feature set."""
        f_beside = self.beside.labels[:1] if self.beside else ()
        return tuple(label for label in self.seeds if label in (*self.contenders, *f_beside))

    def is_beside(self, label: str) -> bool:
        """Whether a predictor reads the second feature set."""
        return self.beside is not None and label in self.beside.labels

    def features_of(self, label: str) -> str:
        """The feature set that a predictor reads."""
        return self.beside.features if self.beside and self.is_beside(label) else self.features

    def defined(self, names: Iterable[str]) -> dict[str, str]:
        """The definitions of metrics and detectors; raises ``InputError`` if one is missing."""
        names = list(dict.fromkeys(names))
        if missing := [name for name in names if name not in self.definitions]:
            raise InputError(f"card of a result: definitions: expected one of {missing[0]!r}")
        return {name: self.definitions[name] for name in names}

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form."""
        contenders = {label: head.summary() for label, head in self.contenders.items()}
        facts = {**asdict(self), "contenders": contenders}
        omitted = {*(OF_DETECTIONS if self.detector is None else OF_EVALUATIONS)}
        omitted |= {"beside"} if self.beside is None else set()
        return {key: value for key, value in facts.items() if key not in omitted}

    @classmethod
    def of(cls, result: Artifact) -> Self:
        """Read the card of a finished comparison.

        Raises:
            NotFoundError, DamagedError: the result is not finished, or was altered.
            InputError: its card is not in our format.
        """
        what = f"card of result '{result.name}'"
        values = known(result.card(), what)
        contenders = known(values.get("contenders", {}), what)
        heads = {label: HeadCard.from_dict(head) for label, head in contenders.items()}
        return typed(cls, {**values, "contenders": heads}, what)
