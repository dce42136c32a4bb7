"""Results of the stage curate.

``ranked.parquet`` has a row for each sample, in the order of the chosen score; ``classes.parquet``
one for each class; ``joint.parquet`` the confident joint; ``neighbours.parquet`` the nearest rows
of each row; ``sheet.html`` and ``sheet-*.png`` show the first rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stages.curation.curation_scores import RANKINGS
from stages.errors import InputError
from stages.stored_card import StoredCard
from store.artifacts import Artifact
from store.featureset import FeatureSet

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RANKED, CLASSES, JOINT = "ranked.parquet", "classes.parquet", "joint.parquet"
NEIGHBOURS = "neighbours.parquet"
ROW_COLUMNS = (
    *("suggested_name", "suggested_probability", "is_label_issue", "is_flipped"),
    *RANKINGS,
    "nearest_sample_id",
)
"""Columns of `RANKED` beside those of the sample table."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What determines a curation beside its feature sets.

    Attributes:
        by: score of the ranking.
        top: number of rows on the sheet at most.
        folds, seed: of the refits; 0 folds for f's own probabilities.
        space: "features", "reflection" or "none".
        loss: loss of the reflection; None for the others.
        neighbours: number of nearest rows to list; 0 for none.
        flips: labels that are flipped before the rows are scored, as text of
            `stages.data.flips.Flips`; None for none.
    """

    by: str
    top: int
    folds: int
    seed: int
    space: str
    loss: str | None
    neighbours: int
    flips: str | None = None

    @property
    def planned(self) -> dict[str, Any]:  # Any: JSON
        """What a plan records; without flips none are mentioned, so older plans remain valid."""
        values = asdict(self)
        if self.flips is None:
            del values["flips"]
        return values


@dataclass(frozen=True, slots=True)
class FoundFlips:
    """How well flipped labels were found.

    Attributes:
        flipped: number of judged rows whose label was flipped.
        precision, recall, f1: of the flags: share of the flagged rows that were flipped, share of
            the flipped rows that are flagged, and their harmonic mean.
        auroc: score -> chance that it ranks a flipped row before another one, ties counted half.
    """

    flipped: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class CurationCard(StoredCard):
    """The card of a curation, in its order.

    Attributes:
        features, against: feature sets of the rows, and of the rows that were searched for
            neighbours if they are others.
        model: name of the network.
        split: split of the data set.
        rows: number of rows; ``labelled`` of them have a label and did not fail.
        issues: number of labelled rows that are flagged as label errors.
        asked: the options.
        class_names: names of the classes.
        definitions: score -> its definition.
        versions: library -> its version.
        seconds: how long it took.
        found: how well flipped labels were found; None if none were flipped.
    """

    title: str
    features: str
    against: str | None
    model: str
    split: str | None
    rows: int
    labelled: int
    issues: int
    asked: Asked
    class_names: tuple[str, ...]
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float
    found: FoundFlips | None = None

    @property
    def is_same_set(self) -> bool:
        """Whether neighbours are rows of the same set."""
        return self.against is None


def top_of(result: Artifact) -> pd.DataFrame:
    """The first rows of the ranking, those of the sheet."""
    from stages.curation.ranked_rows import top_rows

    card = CurationCard.of(result)
    ranked = result.read_frame(RANKED)
    asked = card.asked
    return top_rows(ranked, asked.by, asked.top, is_same_set=card.is_same_set)


def columns_of_rows(result: Artifact, feature_set: FeatureSet) -> pa.Table:
    """What a curation found for each row, in the order of the rows, as columns.

    Raises:
        InputError: the result is no curation, or that of other features.
    """
    import pyarrow as pa

    if RANKED not in result.files():
        raise InputError(f"result {result.name}: expected a result of curate")
    if (features := CurationCard.of(result).features) != feature_set.name:
        raise InputError(
            f"result {result.name}: expected a curation of {feature_set.name}, found one of "
            f"{features}"
        )
    rows = result.read_frame(RANKED).sort_values("row")
    columns: dict[str, pa.Array] = {}
    for name in ROW_COLUMNS:
        if name in rows:
            is_text = name.endswith(("_name", "_id"))
            values = rows[name].to_numpy()
            columns[name] = pa.array(
                values, pa.string() if is_text else None, from_pandas=is_text or None
            )
    return pa.table(columns)


def suspected_pairs(joint: pd.DataFrame, n: int) -> pd.DataFrame:
    """The pairs of a label and another class with the most expected label errors."""
    errors = joint[(joint["label"] != joint["class"]) & (joint["n_expected"] > 0)]
    ordered = errors.sort_values("n_expected", ascending=False, kind="stable")
    return ordered.head(n)
