"""The paper's own numbers, and which of them belongs beside a row of ours.

``paper.csv`` holds what the paper prints (arXiv 2209.08425 and its ICLR 2022 submission), percent
as fractions. A number belongs beside a head that is what the paper's row is, whatever people call
it: the card decides, not the label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from stages.errors import InputError

LAYERS_OF_H = {"vgg16": (1000, 100)}
"""Hidden layers of the paper's H where they are not 300 and 100."""

PAPER_DATA = {
    "cifar10": ("test", 10_000, 1),
    "cifar10c": ("test", 950_000, 95),
    "cifar10 against textures": ("test", 5_640, 1),
    "cifar10 against svhn-10k": ("test", 10_000, 1),
    "cifar10 against places365": ("test", 10_000, 1),
    "cifar10 against lsun-c": ("test", 10_000, 1),
}
"""Data set -> the split, rows and cells that the paper's numbers are of."""


@dataclass(frozen=True)
class PaperNumber:
    """A number of the paper: NaN where it prints none; ``note`` says what to know about it."""

    value: float = math.nan
    dataset: str = ""
    note: str = ""


@cache
def paper_numbers() -> pd.DataFrame:
    """Columns table, dataset, network, row, metric, value, note; leave it as it is."""
    with (files("stages.report") / "paper.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"note": str}, keep_default_na=False)


def check_paper_table(name: str | None) -> None:
    """Raise ``InputError`` where the paper's numbers of that table are not here."""
    known = sorted(set(paper_numbers()["table"]))
    if name is not None and name not in known:
        raise InputError(f"no numbers of the paper for '{name}': there are those of {known}")


def paper_number(table: str | None, network: str, row: str | None, metric: str) -> PaperNumber:
    """What the paper prints in a row of a table.

    >>> paper_number("table-5", "resnet18", "H", "ece")
    PaperNumber(value=0.07, dataset='cifar10c', note='')
    """
    return _by_key().get((table, network, row, metric), PaperNumber())


@cache
def _by_key() -> dict[tuple[str | None, str, str | None, str], PaperNumber]:
    columns = (paper_numbers()[name] for name in ("table", "network", "row", "metric"))
    values = (paper_numbers()[name] for name in ("value", "dataset", "note"))
    numbers = (PaperNumber(float(value), *rest) for value, *rest in zip(*values, strict=True))
    return dict(zip(zip(*columns, strict=True), numbers, strict=True))


def other_data(theirs: str, card: Mapping[str, Any]) -> str:
    """What a result was judged on, as far as the paper's number is of other data; else nothing.

    Args:
        theirs: the data set of the paper's number.
        card: of the result.
    """
    name, split = card["dataset"]["name"], card["dataset"].get("split")
    if name != theirs:
        return str(name)
    of_split, n_rows, n_cells = PAPER_DATA[theirs]
    here = {
        f"{split or 'no'} split (theirs: {of_split})": split != of_split,
        f"{card['rows']:,} rows (theirs: {n_rows:,})": card["rows"] != n_rows,
        f"{card['cells']['count']} cells (theirs: {n_cells})": card["cells"]["count"] != n_cells,
    }
    told = ", ".join(text for text, is_other in here.items() if is_other)
    return f"{name} with {told}" if told else ""


def in_cell(row: str | None, card: Mapping[str, Any]) -> str | None:
    """A row of a table that has one for each detector and set; as it is in any other.

    >>> in_cell("H", {"detector": "msp", "dataset": {"name": "cifar10 against lsun-c"}})
    'H, msp, lsun-c'
    """
    if row is None or "detector" not in card:
        return row
    return f"{row}, {card['detector']}, {card['dataset']['name'].partition(' against ')[2]}"


def paper_row(table: str | None, network: str, head: Mapping[str, Any] | None) -> str | None:
    """Which row of the paper's table a head is; f where there is none, ``None`` for no row.

    Args:
        table: one of those that there are numbers of, such as "table-3".
        network: of f, as it is called here.
        head: what its card says: ``predictor`` and ``spec``.

    >>> spec = {"reads": "reflection", "loss": "ce", "layers": [300, 100]}
    >>> paper_row("table-7", "resnet18", {"predictor": "mlp", "spec": spec})
    'ce'
    """
    if head is None:
        return "f"
    spec = head.get("spec", {})
    layers = tuple(spec.get("layers", ()))
    reads = spec.get("reads", "reflection")
    if table == "table-8":
        return _row_of_table_8(head, spec, layers, reads)
    is_mlp = head.get("predictor", "mlp") == "mlp"
    if not is_mlp or not _is_on_reflection(spec, reads):
        return None
    if layers != LAYERS_OF_H.get(network, (300, 100)):
        return None
    if table == "table-7":
        return str(spec.get("loss"))
    return "H" if spec.get("loss") == "mse-m" else None


def _is_on_reflection(spec: Mapping[str, Any], reads: str) -> bool:
    """Made as the paper makes it: one backward pass, scaled between -1 and 1, all of it read."""
    return (
        reads == "reflection"
        and spec.get("rank") is None
        and spec.get("variant", "single-pass") == "single-pass"
        and spec.get("scaling", "minmax") == "minmax"
    )


def _row_of_table_8(
    head: Mapping[str, Any], spec: Mapping[str, Any], layers: tuple[int, ...], reads: str
) -> str | None:
    is_h = _is_on_reflection(spec, reads) and spec.get("loss") == "mse-m"
    is_plain = reads == "features" and spec.get("scaling") == "none"
    if head.get("predictor") == "neighbours":
        what = "r_x" if is_h else "f" if is_plain else None
        return f"10-NN on {what}" if what and spec.get("k") == 10 else None
    if head.get("predictor", "mlp") != "mlp" or not (is_h or is_plain):
        return None
    width = spec["feature_dim"] * (spec["n_classes"] if is_h else 1)
    sizes = "-".join(map(str, (width, *layers, spec["n_classes"])))
    return f"{'H' if is_h else 'f_L'} {sizes}"
