"""Results as a report reads them: entries with their axes, and frames over all of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.errors import InputError
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import AmbiguousNameError, NotFoundError

Axes = Mapping[str, str | int | float]
"""What tells a result from the others of a report: ``{"network": "resnet18"}``."""

KEYS = ("predictor", "other", "seed", "corruption", "severity", "bin", "low", "high", "metric")
"""Columns of results; an axis cannot be called one of these."""


_EMPTY = pd.DataFrame()


@dataclass(frozen=True)
class Entry:
    """A result, and where it stands among the others of a report."""

    axes: Axes
    result: Artifact


@dataclass(frozen=True)
class Judged:
    """An entry that was read.

    Attributes:
        axes: of the entry.
        name: of the result.
        card: of the result.
        source, model: what the features say of the data set and of f; little where they are gone.
        by_group: a row for each predictor, seed and cell, with the axes in front.
        average: a row for each predictor and metric, with the axes in front.
        differences: a row for each pair of predictors and metric, with the axes in front.
        bins: a row for each predictor, seed, cell and confidence bin, with the axes in front.
    """

    axes: Axes
    name: str
    card: Mapping[str, Any]
    source: Mapping[str, Any]
    model: Mapping[str, Any]
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame
    bins: pd.DataFrame

    @property
    def dataset(self) -> str:
        """The data set that was judged on, as it is called here."""
        return str(self.card["dataset"]["name"])

    @property
    def network(self) -> str:
        """What f is: an axis if it says so, else what its card says."""
        return str(self.axes.get("network", self.model.get("network", self.card["model"])))

    @property
    def heads(self) -> Mapping[str, Mapping[str, Any]]:
        """Label -> what the card says of the contender's head; f is not among them."""
        found: Mapping[str, Mapping[str, Any]] = self.card["contenders"]
        return found


def find_result(store: FeatureStore, name: str) -> Artifact:
    """The result of that name, or the only one whose name begins so.

    Raises:
        NotFoundError: there is none.
        AmbiguousNameError: there are several.
    """
    there = store.artifacts("result")
    matches = [found for found in there if found.name.startswith(name)]
    if len(matches) > 1:  # an analysis is a result too, and has no such tables
        matches = [found for found in matches if found.name == name or _is_judged(found)]
    for found in matches:
        if found.name == name or len(matches) == 1:
            return found
    if not matches:
        names = ", ".join(found.name for found in there) or "none yet"
        raise NotFoundError(
            f"no result '{name}' in {store.location} (there: {names}): `intro-pipe evaluate` "
            "makes one"
        )
    names = ", ".join(found.name for found in matches)
    raise AmbiguousNameError(f"'{name}' may be any of {names}: write more of the name")


def _is_judged(result: Artifact) -> bool:
    return bool(result.plan()["stage"]["name"] in ("evaluate", "ood"))


def entries_of(results: Sequence[Artifact]) -> list[Entry]:
    """Entries told apart by the axis ``result``, without the hash where that is enough."""
    if len(results) == 1:
        return [Entry({}, results[0])]
    short = [found.name.rpartition("-")[0] for found in results]
    is_enough = len(set(short)) == len(short)
    names = short if is_enough else [found.name for found in results]
    return [Entry({"result": name}, found) for name, found in zip(names, results, strict=True)]


def read_entries(store: FeatureStore, entries: Sequence[Entry]) -> tuple[Judged, ...]:
    """The entries' results, each file checked against its card.

    Raises:
        InputError: no entries, axes that differ in their names, or two entries with equal axes.
        NotFoundError, DamagedError: a result that is not finished, or was altered.
    """
    if not entries:
        raise InputError("a report of no results: expected one or more")
    names = tuple(entries[0].axes)
    for entry in entries:
        if tuple(entry.axes) != names:
            raise InputError(
                f"result {entry.result.name} has the axes {list(entry.axes)}, "
                f"the first one has {list(names)}: give all the same"
            )
    if taken := set(names) & set(KEYS):
        raise InputError(f"an axis cannot be called {min(taken)}: results have such a column")
    places = [tuple(entry.axes.values()) for entry in entries]
    if len(set(places)) < len(places):
        raise InputError(f"two results with the same {' and '.join(names) or 'place'}: {places}")
    return tuple(_read(store, entry) for entry in entries)


def frame_over(judged: Sequence[Judged], part: str) -> pd.DataFrame:
    """``by_group``, ``average`` or ``bins`` of all entries, one below the other.

    Results that have no corruptions beside some that have are "clean", of severity 0.
    """
    frame: pd.DataFrame = pd.concat([getattr(found, part) for found in judged], ignore_index=True)
    for column, value in (("corruption", "clean"), ("severity", 0)):
        if column in frame.columns and frame[column].isna().any():
            frame[column] = frame[column].fillna(value).infer_objects()
    return frame


def varying(frame: pd.DataFrame, axes: Sequence[str]) -> tuple[str, ...]:
    """The axes that tell rows of a frame apart; the others have one value."""
    return tuple(name for name in axes if frame[name].nunique() > 1)


def _read(store: FeatureStore, entry: Entry) -> Judged:
    result = entry.result
    card = result.card()
    if "features" not in card:
        raise InputError(
            f"result {result.name}: expected an evaluation, a detection, an analysis or the curves "
            "of active learning, found a single run or a question for labels, which has no table: "
            "`intro-pipe ls` names the others"
        )
    files = [f"{part}.parquet" for part in ("by-group", "average", "differences", "bins")]
    frames = (
        _with_axes(
            # What tells sets apart has no bins of confidence.
            pd.read_parquet(io.BytesIO(result.read(file))) if file in card["files"] else _EMPTY,
            entry.axes,
        )
        for file in files
    )
    return Judged(entry.axes, result.name, card, *_origin(store, card), *frames)


def _origin(
    store: FeatureStore, card: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        inputs = store.resolve(card["features"]).plan["inputs"]
    except NotFoundError:  # a result outlives the features that it was computed from
        return card["dataset"], {"name": card["model"]}
    return inputs["source"], inputs["model"]


def _with_axes(frame: pd.DataFrame, axes: Axes) -> pd.DataFrame:
    """The axes as the first columns."""
    frame = frame.copy()
    for at, (name, value) in enumerate(axes.items()):
        frame.insert(at, name, value)
    return frame
