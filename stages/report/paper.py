"""The paper's own numbers, and which of them is comparable to a row of ours.

``paper.csv`` holds the numbers printed in the paper (arXiv 2209.08425 and its ICLR 2022
submission), with percentages as fractions. A number is shown beside a head if the head's card
matches the paper's row, whatever the head is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pandas as pd

from stages.errors import InputError
from stages.introspection.comparison_card import ComparisonCard
from stages.introspection.head_card import HeadCard, TrainedNetwork, Votes
from stages.introspection.reading import Reading

LAYERS_OF_H = {"vgg16": (1000, 100)}
"""Hidden layers of the paper's H for networks where they are not 300 and 100."""

PAPER_DATA = {
    "cifar10": ("test", 10_000, 1),
    "cifar10c": ("test", 950_000, 95),
    "cifar10 against textures": ("test", 5_640, 1),
    "cifar10 against svhn-10k": ("test", 10_000, 1),
    "cifar10 against places365": ("test", 10_000, 1),
    "cifar10 against lsun-c": ("test", 10_000, 1),
}
"""Data set -> split, rows and cells on which the paper's numbers are computed."""


@dataclass(frozen=True)
class PaperNumber:
    """A number of the paper: NaN if it prints none; ``note`` holds remarks about it."""

    value: float = math.nan
    dataset: str = ""
    note: str = ""


@cache
def paper_numbers() -> pd.DataFrame:
    """Columns table, dataset, network, row, metric, value, note. Cached: do not modify."""
    with (files("stages.report") / "paper.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"note": str}, keep_default_na=False)


def check_paper_table(name: str | None) -> None:
    """Raise ``InputError`` if the paper's numbers for that table are not available."""
    known = sorted(set(paper_numbers()["table"]))
    if name is not None and name not in known:
        raise InputError(f"no numbers of the paper for '{name}': available are those of {known}")


_SAME = {"fpr95_sweep": "fpr95"}
"""Metric -> that under which the paper has its number: the paper's code base takes the sweep."""


def paper_number(table: str | None, network: str, row: str | None, metric: str) -> PaperNumber:
    """The number in a row of one of the paper's tables.

    >>> paper_number("table-5", "resnet18", "H", "ece")
    PaperNumber(value=0.07, dataset='cifar10c', note='')
    """
    return _by_key().get((table, network, row, _SAME.get(metric, metric)), PaperNumber())


@cache
def _by_key() -> dict[tuple[str | None, str, str | None, str], PaperNumber]:
    columns = (paper_numbers()[name] for name in ("table", "network", "row", "metric"))
    values = (paper_numbers()[name] for name in ("value", "dataset", "note"))
    numbers = (PaperNumber(float(value), *rest) for value, *rest in zip(*values, strict=True))
    return dict(zip(zip(*columns, strict=True), numbers, strict=True))


def other_data(theirs: str, card: ComparisonCard) -> str:
    """How our data differ from those of the paper's number; empty if they are the same.

    Args:
        theirs: data set of the paper's number.
        card: card of the result.
    """
    name, split, n_here = card.dataset.name, card.dataset.split, card.cells.count
    if name != theirs:
        return name
    of_split, n_rows, n_cells = PAPER_DATA[theirs]
    here = {
        f"{split or 'no'} split (theirs: {of_split})": split != of_split,
        f"{card.rows:,} rows (theirs: {n_rows:,})": card.rows != n_rows,
        f"{n_here} cells (theirs: {n_cells})": n_here != n_cells,
    }
    differences = ", ".join(text for text, is_other in here.items() if is_other)
    return f"{name} with {differences}" if differences else ""


def in_cell(row: str | None, dataset: str, detector: str | None) -> str | None:
    """Row name in a table with one row per detector and set; unchanged without a detector.

    >>> in_cell("H", "cifar10 against lsun-c", "msp")
    'H, msp, lsun-c'
    """
    if row is None or detector is None:
        return row
    return f"{row}, {detector}, {dataset.partition(' against ')[2]}"


def of_method(table: str | None, row: str | None, axes: Mapping[str, object]) -> str | None:
    """Row name in a table with rows of several training methods, which the axis "method" names.

    >>> of_method("table-4", "H", {"method": "noise"})
    'noise H'
    """
    if row is None or table != "table-4":
        return row
    return f"{axes.get('method')} {row}"


def paper_row(table: str | None, network: str, head: HeadCard | None) -> str | None:
    """The row of the paper's table that matches a head: "f" without one, ``None`` for no match.

    Args:
        table: a table with numbers, such as "table-3".
        network: name of f.
        head: the head, as the card of the result describes it.
    """
    if head is None:
        return "f"
    if table == "table-8":
        return _row_of_table_8(head)
    if table == "table-6" and isinstance(head.predictor, Votes):
        return "weighted kNN" if _is_of_simclr(head.predictor) else None
    if not isinstance(head.predictor, TrainedNetwork):
        return None
    spec = head.predictor.spec
    if spec.rank is not None or not _is_on_reflection(spec.reading):
        return None
    if spec.layers != LAYERS_OF_H.get(network, (300, 100)):
        return None
    if table == "table-7":
        return spec.loss
    return "H" if spec.loss == "mse-m" else None


def _is_on_reflection(reading: Reading) -> bool:
    """Whether it is the reflection as the paper reads it: single pass, scaled to [-1, 1]."""
    how = (reading.reads, reading.variant, reading.scaling, reading.bias_gradient)
    return how == ("reflection", "single-pass", "minmax", False)


def _is_of_simclr(votes: Votes) -> bool:
    """Whether they are the weighted votes of leftthomas/SimCLR."""
    how = (votes.k, votes.temperature, votes.reading.reads, votes.reading.scaling)
    return how == (200, 0.5, "features", "none")


def _row_of_table_8(head: HeadCard) -> str | None:
    match head.predictor:
        case Votes(k=10, reading=reading, temperature=None):
            of = {"H": "10-NN on r_x", "f_L": "10-NN on f"}
            return of.get(_input_in_table_8(reading))
        case TrainedNetwork(spec=spec) if spec.rank is None:
            name = _input_in_table_8(spec.reading)
            return f"{name} {'-'.join(map(str, spec.sizes))}" if name else None
    return None


def _input_in_table_8(reading: Reading) -> str:
    """The letter of a head that reads these vectors; empty if the table has none."""
    if _is_on_reflection(reading) and reading.loss == "mse-m":
        return "H"
    return "f_L" if (reading.reads, reading.scaling) == ("features", "none") else ""
