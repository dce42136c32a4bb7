"""Read results for a report: entries with their axes, and data frames over all entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from pipeline.stage import stage_name
from stages.errors import InputError
from stages.introspection.comparison_card import ComparisonCard
from stages.introspection.head_card import HeadCard
from stages.reflection.feature_plan import FeaturePlan, ModelFacts, SourceFacts
from stages.report.vocabulary import PAGES
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import AmbiguousNameError, NotFoundError, StoreError

Axes = Mapping[str, str | int | float]
"""Names and values that distinguish a result in a report: ``{"network": "resnet18"}``."""

KEYS = ("predictor", "other", "seed", "corruption", "severity", "bin", "low", "high", "metric")
"""Columns of results; an axis cannot have one of these names."""


_EMPTY = pd.DataFrame()


@dataclass(frozen=True)
class Entry:
    """A result and its values on the axes of a report."""

    axes: Axes
    result: Artifact


@dataclass(frozen=True)
class Judged:
    """An entry whose result was read. Frames have the axes as their first columns.

    Attributes:
        axes: axes of the entry.
        name: name of the result.
        card: card of the result.
        model, source: f and the images as the features record them; only their names if the
            features are gone.
        beside: the same of a second feature set; ``None`` without one.
        by_group: one row per predictor, seed and cell.
        average: one row per predictor and metric.
        differences: one row per pair of predictors and metric.
        bins: one row per predictor, seed, cell and confidence bin.
    """

    axes: Axes
    name: str
    card: ComparisonCard
    model: ModelFacts
    source: SourceFacts
    beside: tuple[ModelFacts, SourceFacts] | None
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame
    bins: pd.DataFrame

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.card.dataset.name

    @property
    def network(self) -> str:
        """Name of the network f: from the axes if given there, else from its card."""
        return str(self.axes.get("network", self.model.network or self.card.model))

    @property
    def heads(self) -> Mapping[str, HeadCard]:
        """Label -> the contender's head, as the card describes it; f is not included."""
        return self.card.contenders

    @property
    def others(self) -> tuple[str, ...]:
        """The contenders beside f: heads, and f of a second feature set."""
        return self.card.others


def find_result(store: FeatureStore, name: str) -> Artifact:
    """Find a result by its name, or by a prefix that only one result has.

    Raises:
        NotFoundError: no result matches.
        AmbiguousNameError: several results match.
    """
    with suppress(StoreError):  # not a valid name, but it may be a prefix
        if (exact := store.artifact("result", name)).is_complete():
            return exact
    existing = store.artifacts("result")
    matches = [found for found in existing if found.name.startswith(name)]
    if len(matches) > 1:  # analyses are results too, but have no page
        matches = [
            found for found in matches if found.name == name or stage_name(found.plan()) in PAGES
        ]
    for found in matches:
        if found.name == name or len(matches) == 1:
            return found
    if not matches:
        names = ", ".join(found.name for found in existing) or "none yet"
        raise NotFoundError(
            f"no result '{name}' in {store.location} (existing: {names}): `intro-pipe evaluate`, "
            "`uncertainty`, `detect-failures`, `ood` and `active-learn` make results, "
            "`intro-pipe ls` lists them"
        )
    names = "; ".join(_with_contents(found) for found in matches)
    raise AmbiguousNameError(
        f"'{name}' matches {len(matches)} results, expected one: {names}; use more of the name"
    )


def _with_contents(result: Artifact) -> str:
    """The name of a result; for an evaluation with its contenders and the columns of its cells."""
    if stage_name(result.plan()) != "evaluate" or not result.is_complete():
        return result.name
    card = ComparisonCard.of(result)
    by = f" by {','.join(card.cells.columns)}" if card.cells.columns else ""
    return f"{result.name} ({', '.join(['f', *card.others])}{by})"


def is_judged(result: Artifact) -> bool:
    """Whether a result compares f with heads in the tables of `Judged`."""
    return stage_name(result.plan()) in ("evaluate", "uncertainty", "ood")


def entries_of(results: Sequence[Artifact], labels: Sequence[str] = ()) -> list[Entry]:
    """Entries with the axis ``result``, which a single one does not need.

    Results are named by their labels; those without one, or with an empty one, by their names,
    without the hash if they remain unique. Raises ``InputError`` if two have the same label, or if
    one result is given twice.
    """
    stored = [found.name for found in results]
    if twice := [name for name in stored if stored.count(name) > 1]:
        raise InputError(f"result {twice[0]} is given twice: give each result once")
    if len(results) == 1:
        return [Entry({}, results[0])]
    short = [name.rpartition("-")[0] for name in stored]
    names = short if len(set(short)) == len(short) else stored
    if labels:
        names = [label or name for label, name in zip(labels, names, strict=True)]
    if taken := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"two results are named '{taken[0]}': name each differently, as LABEL=RESULT"
        )
    return [Entry({"result": name}, found) for name, found in zip(names, results, strict=True)]


def read_entries(store: FeatureStore, entries: Sequence[Entry]) -> tuple[Judged, ...]:
    """Read the results of the entries, checking each file against its card.

    Raises:
        InputError: there are no entries, their axes have different names, or two entries have
            equal axes.
        NotFoundError: a result is not finished.
        DamagedError: a result was altered.
    """
    if not entries:
        raise InputError("a report without results: expected one or more")
    names = tuple(entries[0].axes)
    for entry in entries:
        if tuple(entry.axes) != names:
            raise InputError(
                f"result {entry.result.name} has the axes {list(entry.axes)}, "
                f"the first one has {list(names)}: use the same for all"
            )
    if taken := set(names) & set(KEYS):
        raise InputError(f"an axis cannot be called {min(taken)}: results have such a column")
    places = [tuple(entry.axes.values()) for entry in entries]
    if len(set(places)) < len(places):
        raise InputError(f"two results with the same {' and '.join(names) or 'place'}: {places}")
    return tuple(_read(store, entry) for entry in entries)


def frame_over(judged: Sequence[Judged], part: str) -> pd.DataFrame:
    """``by_group``, ``average``, ``differences`` or ``bins`` of all entries, concatenated.

    Results without corruptions, beside some with corruptions, are "clean" with severity 0.
    """
    frame: pd.DataFrame = pd.concat([getattr(found, part) for found in judged], ignore_index=True)
    for column, value in (("corruption", "clean"), ("severity", 0)):
        if column in frame.columns and frame[column].isna().any():
            frame[column] = frame[column].fillna(value).infer_objects()
    return frame


def varying(frame: pd.DataFrame, axes: Sequence[str]) -> tuple[str, ...]:
    """The axes with more than one value in a frame."""
    return tuple(name for name in axes if frame[name].nunique() > 1)


def _read(store: FeatureStore, entry: Entry) -> Judged:
    result = entry.result
    files = result.files()
    if not is_judged(result):
        raise InputError(
            f"result {result.name}: expected an evaluation or a detection, as the first result of "
            "this page: use separate reports for others"
        )
    tables = [f"{part}.parquet" for part in ("by-group", "average", "differences", "bins")]
    frames = (
        _with_axes(
            # Detection results have no confidence bins.
            result.read_frame(table) if table in files else _EMPTY,
            entry.axes,
        )
        for table in tables
    )
    card = ComparisonCard.of(result)
    model, source = _inputs(store, card.features, card.model, card.dataset.name)
    beside = None
    if (other := card.beside) is not None:
        beside = _inputs(store, other.features, other.model, card.dataset.name)
    return Judged(entry.axes, result.name, card, model, source, beside, *frames)


def _inputs(
    store: FeatureStore, features: str, model: str, dataset: str
) -> tuple[ModelFacts, SourceFacts]:
    """The network and the images of a feature set; their names alone if it was deleted."""
    try:
        plan = FeaturePlan.of(store.resolve(features).plan)
    except NotFoundError:
        return ModelFacts(model), SourceFacts(dataset)
    return plan.model, plan.source


def _with_axes(frame: pd.DataFrame, axes: Axes) -> pd.DataFrame:
    """Insert the axes as the first columns; raises ``InputError`` for the name of a column."""
    frame = frame.copy()
    for at, (name, value) in enumerate(axes.items()):
        if name in frame.columns:
            raise InputError(f"an axis cannot be called {name}: results have a column of this name")
        frame.insert(at, name, value)
    return frame
