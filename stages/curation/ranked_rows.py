"""Score the rows of a feature set, and rank them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.confident_learning import (
    Confident,
    confidence_weighted_entropy,
    confident_learning,
    normalized_margin,
    self_confidence,
)
from stages.curation.curation_scores import RANKINGS
from stages.curation.near_rows import nearest_rows, unit_vectors
from stages.curation.refits import refitted_probabilities
from stages.errors import InputError
from stages.introspection.heads import factors_in_memory, labels_of
from stages.introspection.reading import Reading
from stages.metrics.finite import finite_rows
from stages.reflection.losses import softmax
from stages.scores.training_value import TRAINING_VALUES
from store.featureset import FeatureSet

Tick = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a feature set, in memory.

    Attributes:
        features, logits: float32, ``[n, d]`` and ``[n, N]``.
        labels: shape ``(n,)``; -1 if unknown.
        sample_ids: those of the data set, else the row numbers.
        is_finite: rows that did not fail, shape ``(n,)``.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    sample_ids: Sequence[str]
    is_finite: NDArray[np.bool_]

    @classmethod
    def of(cls, feature_set: FeatureSet) -> Rows:
        """Read all rows; raises ``ResourceError`` if they do not fit into the free memory."""
        features, logits = factors_in_memory(feature_set, "curate")
        samples = feature_set.samples()
        ids = samples["sample_id"] if "sample_id" in samples else map(str, range(len(samples)))
        return cls(
            features, logits, labels_of(feature_set), list(ids), finite_rows(features, logits)
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def judged(self) -> NDArray[np.int64]:
        """The rows whose labels are judged: those with a label and finite numbers."""
        return np.flatnonzero(self.is_finite & (self.labels >= 0))

    @property
    def n_classes(self) -> int:
        """``N``, the number of logits."""
        return int(self.logits.shape[1])


def out_of_sample(rows: Rows, n_folds: int, seed: int, tick: Tick) -> NDArray[np.floating[Any]]:
    """Probabilities of the judged rows by refits, or f's own if there are no folds.

    Raises:
        InputError: there are labelled rows, but fewer than folds.
    """
    judged = rows.judged
    if not n_folds or not len(judged):
        tick(len(judged))
        return softmax(rows.logits[judged])
    if len(judged) < n_folds:
        raise InputError(
            f"--folds {n_folds}: expected at least as many labelled rows without NaN, found "
            f"{len(judged)}"
        )
    features, labels = rows.features[judged], rows.labels[judged]
    return refitted_probabilities(
        features, labels, rows.n_classes, n_folds=n_folds, seed=seed, tick=tick
    )


def label_columns(
    rows: Rows, p: NDArray[np.floating[Any]]
) -> tuple[dict[str, NDArray[Any]], Confident]:
    """The scores of labels as columns over all rows, and what confident learning finds.

    Rows that are not judged have NaN, the suggestion -1, and are not flagged.
    """
    judged = rows.judged
    labels = rows.labels[judged]
    found = confident_learning(p, labels)
    scores = {
        "self_confidence": self_confidence(p, labels),
        "normalized_margin": normalized_margin(p, labels),
        "confidence_weighted_entropy": confidence_weighted_entropy(p, labels),
        **{
            name: kind.score(rows.features[judged], rows.logits[judged], labels)
            for name, kind in TRAINING_VALUES.items()
        },
    }
    columns: dict[str, NDArray[Any]] = {
        "suggested": _spread(p.argmax(axis=1), judged, len(rows), -1),
        "suggested_probability": _spread(
            p.max(axis=1).astype(np.float64), judged, len(rows), np.nan
        ),
        "is_label_issue": _spread(found.is_issue, judged, len(rows), False),
    }
    columns |= {name: _spread(each, judged, len(rows), np.nan) for name, each in scores.items()}
    return columns, found


def near_columns(
    rows: Rows, against: Rows | None, reading: Reading, k: int, tick: Tick
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The nearest row of each row as columns, and a table of the ``k`` nearest.

    Failed rows are no neighbours and have none: their nearest row is -1, its cosine NaN.

    Args:
        rows: the rows to find neighbours of.
        against: the rows to search; None for these themselves.
        reading: vectors to compare, without a scaling.
        k: number of neighbours in the table.
        tick: called with the number of rows of each finished block.
    """
    theirs = rows if against is None else against
    ours, searched = np.flatnonzero(rows.is_finite), np.flatnonzero(theirs.is_finite)
    queries, targets = (
        unit_vectors(reading, each.features[kept], each.logits[kept])
        for each, kept in ((rows, ours), (theirs, searched))
    )
    near = nearest_rows(queries, targets, k, is_same_set=against is None, tick=tick)
    found = searched[near.rows]
    ids = np.array([*theirs.sample_ids, None], dtype=object)
    k = found.shape[1]
    first, cosine = np.full(len(rows), -1), np.full(len(rows), np.nan)
    if k:
        first[ours], cosine[ours] = found[:, 0], near.cosines[:, 0]
    columns = {
        "nearest_row": first,
        "nearest_sample_id": ids[first],
        "nearest_label": np.where(first >= 0, theirs.labels[first], -1),
        "similarity": cosine,
    }
    table = pd.DataFrame(
        {
            "row": np.repeat(ours, k),
            "rank": np.tile(np.arange(1, k + 1), len(ours)),
            "nearest_row": found.ravel(),
            "nearest_sample_id": ids[found.ravel()],
            "similarity": near.cosines.ravel(),
        }
    )
    return columns, table


def ranked(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows in the order of a score, ties by row; those without a number come last."""
    lowest = RANKINGS[by].is_lowest_first
    found: pd.DataFrame = frame.sort_values(by, ascending=lowest, kind="stable")
    return found.reset_index(drop=True)


def top_rows(frame: pd.DataFrame, by: str, n: int, *, is_same_set: bool) -> pd.DataFrame:
    """The first ``n`` ranked rows that have the score.

    Ranked by similarity within a set, two rows that are nearest to each other are one pair: the
    first of them stands for both.
    """
    found = frame[frame[by].notna()]
    if by == "similarity" and is_same_set:
        nearest = frame.set_index("row")["nearest_row"]
        is_mutual = nearest.loc[found["nearest_row"]].to_numpy() == found["row"].to_numpy()
        found = found[~(is_mutual & (found["nearest_row"] < found["row"]).to_numpy())]
    top: pd.DataFrame = found.head(n)
    return top


def by_class(rows: Rows, columns: dict[str, Any], found: Confident) -> pd.DataFrame:
    """A row for each class: its rows, the flagged ones, threshold, and commonest suggestion."""
    judged = rows.judged
    frame = pd.DataFrame({name: values[judged] for name, values in columns.items()})
    frame["label"] = rows.labels[judged]
    counts = np.bincount(frame["label"], minlength=rows.n_classes)
    flagged = frame[frame["is_label_issue"]]
    commonest = flagged.groupby("label")["suggested"].agg(lambda each: each.mode().iloc[0])
    classes = np.arange(rows.n_classes)
    return pd.DataFrame(
        {
            "class": classes,
            "n_rows": counts,
            "n_issues": np.bincount(flagged["label"], minlength=rows.n_classes),
            "threshold": found.thresholds,
            "commonest": commonest.reindex(classes).fillna(-1).astype(np.int64).to_numpy(),
        }
    )


def joint_table(found: Confident) -> pd.DataFrame:
    """The joint counts of labels and classes that are not zero, one row each."""
    label, other = np.nonzero(found.joint + found.expected)
    return pd.DataFrame(
        {
            "label": label,
            "class": other,
            "n_confident": found.joint[label, other],
            "n_expected": found.expected[label, other],
        }
    )


def _spread(values: NDArray[Any], at: NDArray[np.int64], n: int, missing: Any) -> NDArray[Any]:
    """Values of some rows as a column of all rows."""
    column = np.full(n, missing, dtype=values.dtype)
    column[at] = values
    return column
