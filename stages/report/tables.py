"""The table of a report: every row's metrics, its gain over f, and the paper's number beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stages.errors import InputError
from stages.metrics.definitions import DEFINITIONS, DETECTION
from stages.report.paper import check_paper_table, in_cell, other_data, paper_number, paper_row
from stages.report.results import Judged

HIGHER_IS_BETTER = ("accuracy", "log_likelihood", "auroc", "auroc_sweep", "aupr_in", "aupr_out")
NEITHER_IS_BETTER = ("entropy",)


@dataclass(frozen=True)
class TableSpec:
    """Which metrics a table shows, and which of the paper's tables it stands beside."""

    paper: str | None = None
    metrics: tuple[str, ...] = ("accuracy", "ece", "mce", "brier")

    def __post_init__(self) -> None:
        check_paper_table(self.paper)
        known = [*DEFINITIONS, *DETECTION]
        if unknown := [name for name in self.metrics if name not in known]:
            raise InputError(f"no metric '{unknown[0]}': choose from {', '.join(known)}")


def sign_of(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    if metric in NEITHER_IS_BETTER:
        return 0
    return 1 if metric in HIGHER_IS_BETTER else -1


def table_of(judged: Sequence[Judged], spec: TableSpec) -> pd.DataFrame:
    """A row for each entry, contender and metric, in the order of the entries.

    Returns:
        The axes, ``contender``, ``metric``; ``mean`` and ``std`` over ``n_seeds`` seeds, ``low``
        and ``high``; ``gain``, ``gain_low``, ``gain_high`` over f; ``paper``, the paper's number,
        and ``paper_gain``, its difference to the paper's f; ``paper_dataset`` where ours is
        another or a part of it, and ``paper_note``. All but counts are fractions; NaN is "none".

    Raises:
        InputError: a metric that a result does not have.
    """
    return pd.concat([_rows_of(found, spec) for found in judged], ignore_index=True)


def _rows_of(found: Judged, spec: TableSpec) -> pd.DataFrame:
    average = found.average
    for metric in spec.metrics:
        if metric not in set(average["metric"]):
            raise InputError(
                f"result {found.name} has no {metric} (it has {', '.join(average.metric.unique())})"
            )
    # Stable: contenders stay in the order in which they were judged, metrics as they were asked.
    order = {label: at for at, label in enumerate(average["predictor"].unique())}
    place = {metric: at for at, metric in enumerate(spec.metrics)}
    rows = average[average["metric"].isin(spec.metrics)]
    rows = rows.assign(_who=rows["predictor"].map(order), _what=rows["metric"].map(place))
    rows = rows.sort_values(["_who", "_what"]).drop(columns=["_who", "_what"])
    rows = rows.rename(columns={"predictor": "contender"})
    columns = [
        *found.axes,
        *("contender", "metric", "mean", "std", "n_seeds", "low", "high"),
        *("gain", "gain_low", "gain_high"),
    ]
    return _beside_the_paper(rows[columns].reset_index(drop=True), found, spec.paper)


def _beside_the_paper(rows: pd.DataFrame, found: Judged, paper: str | None) -> pd.DataFrame:
    facts = []
    for contender, metric in zip(rows["contender"], rows["metric"], strict=True):
        row = paper_row(paper, found.network, found.heads.get(contender)) if paper else None
        number = paper_number(paper, found.network, in_cell(row, found.card), metric)
        of_f = paper_number(paper, found.network, in_cell("f", found.card), metric)
        is_other = bool(number.dataset and other_data(number.dataset, found.card))
        facts.append(
            {
                "paper": number.value,
                "paper_gain": math.nan if row == "f" else number.value - of_f.value,
                "paper_dataset": number.dataset if is_other else "",
                "paper_note": number.note,
            }
        )
    return rows.join(pd.DataFrame(facts))
