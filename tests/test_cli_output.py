"""Tables of the command line are as wide as the terminal, and nothing is left out."""

import pytest

from cli.output import table

ROWS = [
    {
        "out": name,
        "images": 10_000,
        "detector": "mahalanobis",
        "predictor": predictor,
        **dict.fromkeys(("auroc", "fpr95", "aupr", "dtacc"), "0.9123 ± 0.0012"),
        "gain in auroc": "+0.0123 [+0.0101, +0.0145]",
    }
    for name in ("svhn-10k", "places365")
    for predictor in ("f", "H")
]


def parts_of(text):
    return [part.splitlines() for part in text.split("\n\n")]


@pytest.mark.parametrize(("width", "n_names"), [(60, 1), (80, 3), (100, 3)])
def test_a_wide_table_is_split_and_each_part_names_its_rows(width, n_names):
    parts = parts_of(table(ROWS, width=width))

    assert len(parts) > 1
    assert max(len(line) for part in parts for line in part) <= width
    names = ["out", "detector", "predictor"][:n_names]
    assert all(part[0].split()[:n_names] == names for part in parts)
    assert all(len(part) == 1 + len(ROWS) for part in parts)
    assert all(sum(name in part[0] for part in parts) for name in ROWS[0])


@pytest.mark.parametrize(
    "rows",
    [ROWS, [{"name": "x" * 70, "detail": "y" * 90, "count": 1}]],
    ids=["the terminal is wide", "a column is too wide for any"],
)
def test_a_table_that_splitting_does_not_help_stays_one(rows):
    wide = rows[0].get("detail") is None

    assert len(parts_of(table(rows, width=200 if wide else 80))) == 1


@pytest.mark.parametrize(("columns", "n_parts"), [("80", 3), ("200", 1), (None, 1)])
def test_a_pipe_is_as_wide_as_the_table_unless_told(monkeypatch, columns, n_parts):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)

    assert len(parts_of(table(ROWS))) == n_parts
