"""Rows of a feature set: by condition, by name, or the most doubtful ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.predictors import Predict
from stages.metrics.finite import finite_rows
from stages.reflection.conditions import Condition, columns_of, matching
from stages.reflection.reduction import each_shard
from stages.scores.known_scores import PLAIN
from store.featureset import FeatureSet
from store.shards import Shard

Order = Literal["lowest", "highest"]

N_LISTED = 3
"""Unknown samples that a message lists."""


@dataclass(frozen=True)
class Choice:
    """Which rows; all conditions must hold.

    Attributes:
        where: conditions on sample columns.
        samples: sample ids or row numbers; empty for all.
        disagree: keep the rows for which f and H predict different classes.
        top: keep so many rows, at one end of ``by``.
        by: a column of numbers, or a score of f in `stages.scores.known_scores`.
        order: the end that ``top`` keeps; of equal rows, the first are kept.
    """

    where: tuple[Condition, ...] = ()
    samples: tuple[str, ...] = ()
    disagree: bool = False
    top: int | None = None
    by: str = "confidence"
    order: Order = "lowest"

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form, as stored in a plan."""
        top = {"top": self.top, "by": self.by, "order": self.order} if self.top else {}
        return {
            "where": [str(each) for each in self.where],
            "samples": list(self.samples),
            "disagree": self.disagree,
            **top,
        }


@dataclass(frozen=True)
class ChosenRows:
    """The chosen rows in ascending order, and what f and H predict for them.

    Attributes:
        rows: row numbers in the feature set, shape ``(n,)``.
        head: class and probability that H predicts, shapes ``(n,)``; None without a head.
    """

    rows: NDArray[np.int64]
    head: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None


def chosen_rows(
    feature_set: FeatureSet,
    choice: Choice,
    head: Predict | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> ChosenRows:
    """Choose rows, one shard per thread at a time.

    Failed rows are never chosen, nor are rows whose logits are not finite.

    Args:
        feature_set: a complete feature set.
        choice: which rows.
        head: predicts for the head H, if there is one.
        tick: called with the number of rows of each finished shard.

    Raises:
        InputError: a sample is unknown, a column cannot be ordered, or no row remains.
    """
    _check_by(feature_set, choice)
    chooser = _Chooser(feature_set, choice, head)
    parts = list(each_shard(feature_set, chooser.rows_of, tick))
    found = pd.concat(parts, ignore_index=True)
    _check_samples(feature_set, choice.samples, found)
    found = found[found["keep"]]
    found = _at_the_end(found, choice).sort_values("row")
    if not len(found):
        raise InputError(f"{feature_set.name}: no row matches; see `intro-pipe query` for counts")
    rows = found["row"].to_numpy(np.int64)
    if head is None:
        return ChosenRows(rows)
    return ChosenRows(rows, (found["head"].to_numpy(np.int64), found["p_head"].to_numpy()))


@dataclass(frozen=True)
class _Chooser:
    feature_set: FeatureSet
    choice: Choice
    head: Predict | None

    def rows_of(self, shard: Shard) -> pd.DataFrame:
        """The rows of a shard that may be chosen, and those that are named."""
        choice = self.choice
        names = [name for name, _ in self.feature_set.schema.columns]
        wanted = ["sample_id", "prediction", "status", *columns_of(choice.where)]
        wanted += [choice.by] if choice.by in names else []
        table = self.feature_set.read_samples(shard, list(dict.fromkeys(wanted)))
        samples = table.to_pandas()
        keep = (samples["status"] == "ok").to_numpy() & matching(table, choice.where)
        named = np.zeros(len(samples), dtype=bool)
        rows = np.arange(shard.start, shard.stop)
        if choice.samples:
            asked = list(choice.samples)
            named = samples["sample_id"].isin(asked).to_numpy() | np.isin(rows.astype(str), asked)
            keep &= named
        columns: dict[str, Any] = {
            "row": rows,
            "sample_id": samples["sample_id"].where(named, "") if choice.samples else "",
            "by": samples[choice.by] if choice.by in names else np.nan,
        }
        keep &= self._judged(shard, keep, samples["prediction"].to_numpy(), columns)
        frame = pd.DataFrame({**columns, "keep": keep})
        found: pd.DataFrame = frame.loc[keep | named]
        return found if choice.samples else _at_the_end(found, choice)

    def _judged(
        self,
        shard: Shard,
        keep: NDArray[np.bool_],
        prediction: NDArray[np.int64],
        columns: dict[str, Any],
    ) -> NDArray[np.bool_]:
        """Flag the rows to keep; adds scores and the answer of H to the columns."""
        is_scored = self.choice.top is not None and columns["by"] is np.nan
        columns |= {"head": np.full(len(keep), -1), "p_head": np.full(len(keep), np.nan)}
        if not keep.any() or (self.head is None and not is_scored):
            return np.ones(len(keep), dtype=bool)
        features, logits = (
            self.feature_set.read_chunk(name, shard) for name in ("features", "logits")
        )
        usable = keep & finite_rows(features, logits)
        if is_scored:
            columns["by"] = np.full(len(keep), np.nan)
            columns["by"][usable] = PLAIN[self.choice.by](features[usable], logits[usable])
        if self.head is not None and usable.any():
            probabilities = self.head(features[usable], logits[usable])
            columns["head"][usable] = probabilities.argmax(axis=1)
            columns["p_head"][usable] = probabilities.max(axis=1)
            if self.choice.disagree:
                usable &= columns["head"] != prediction
        return usable


def _at_the_end(found: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """The rows that ``top`` keeps; a missing number is at no end."""
    if choice.top is None:
        return found
    ordered: pd.DataFrame = found[found["by"].notna()]
    is_ascending = choice.order == "lowest"
    best: pd.DataFrame = ordered.sort_values("by", ascending=is_ascending, kind="stable")
    return best.iloc[: choice.top]


def _check_by(feature_set: FeatureSet, choice: Choice) -> None:
    kinds = dict(feature_set.schema.columns)
    numbers = [name for name, kind in kinds.items() if kind in ("int64", "float64")]
    if choice.top is not None and choice.by not in (*numbers, *PLAIN):
        raise InputError(
            f"--by {choice.by}: expected a column of numbers ({', '.join(numbers)}) or a score "
            f"({', '.join(PLAIN)})"
        )


def _check_samples(feature_set: FeatureSet, samples: Sequence[str], found: pd.DataFrame) -> None:
    known = {*found["sample_id"], *found["row"].astype(str)}
    if missing := [each for each in samples if each not in known]:
        listed = ", ".join(missing[:N_LISTED]) + ", ..." * (len(missing) > N_LISTED)
        example = feature_set.read_samples(feature_set.shard_set.shards[0], ["sample_id"])
        raise InputError(
            f"--rows: {len(missing):,} of {len(samples):,} are neither a sample of "
            f"{feature_set.name} nor a row number: {listed}; its ids look like "
            f"{example['sample_id'][0].as_py()!r}"
        )
