"""The table of a report: metrics of every row, gains over f, and the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stages.errors import InputError
from stages.metrics.definitions import DEFINITIONS, DETECTION, INFORMATION, SELECTIVE
from stages.report.paper import (
    PaperNumber,
    check_paper_table,
    in_cell,
    of_method,
    other_data,
    paper_number,
    paper_row,
)
from stages.report.results import Judged
from stages.report.vocabulary import TABLE_METRICS

HIGHER_IS_BETTER = (
    "accuracy",
    "log_likelihood",
    "auroc",
    "auroc_sweep",
    "aupr_in",
    "aupr_out",
    "auroc_f",
    "coverage_at_1",
    "coverage_at_5",
)
NEITHER_IS_BETTER = ("entropy", "mutual_information")


@dataclass(frozen=True)
class TableSpec:
    """The metrics that a table shows, and the table of the paper to compare with."""

    paper: str | None = None
    metrics: tuple[str, ...] = TABLE_METRICS

    def __post_init__(self) -> None:
        check_paper_table(self.paper)
        known = [*DEFINITIONS, *DETECTION, *INFORMATION, *SELECTIVE]
        if unknown := [name for name in self.metrics if name not in known]:
            raise InputError(f"no metric '{unknown[0]}': choose from {', '.join(known)}")


def sign_of(metric: str) -> int:
    """1 if a higher value is better, -1 if a lower one is, 0 if neither."""
    if metric in NEITHER_IS_BETTER:
        return 0
    return 1 if metric in HIGHER_IS_BETTER else -1


def table_of(judged: Sequence[Judged], spec: TableSpec) -> pd.DataFrame:
    """One row per entry, contender and metric, in the order of the entries.

    Returns:
        The axes, ``contender``, ``metric``; ``mean`` and ``std`` over ``n_seeds`` seeds, ``low``
        and ``high``; ``gain``, ``gain_low``, ``gain_high`` over f; ``paper``, the paper's number,
        and ``paper_gain``, its difference to the paper's f; ``paper_dataset`` if our data are
        other or fewer, and ``paper_note``. Metrics are fractions; NaN means there is no number.

    Raises:
        InputError: a result lacks a metric.
    """
    return pd.concat([_rows_of(found, spec) for found in judged], ignore_index=True)


def _rows_of(found: Judged, spec: TableSpec) -> pd.DataFrame:
    average = found.average
    for metric in spec.metrics:
        if metric not in set(average["metric"]):
            raise InputError(
                f"result {found.name} has no {metric} (it has {', '.join(average.metric.unique())})"
            )
    # Stable sort: contenders keep the order of evaluation, metrics the requested order.
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

    def printed(row: str | None, metric: str) -> PaperNumber:
        row = in_cell(of_method(paper, row, found.axes), found.dataset, found.card.detector)
        return paper_number(paper, found.network, row, metric)

    for contender, metric in zip(rows["contender"], rows["metric"], strict=True):
        row = paper_row(paper, found.network, found.heads.get(contender)) if paper else None
        number, of_f = printed(row, metric), printed("f", metric)
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
