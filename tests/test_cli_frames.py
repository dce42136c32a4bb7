"""Tables that are written to terminals, files and spreadsheets."""

import csv
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from cells import cells

from cli.app import main
from cli.frames import TableOptions
from stages.csv_text import csv_of
from stages.errors import InputError
from stages.reflection.conditions import conditions
from store.catalog import FeatureStore
from store.schema import Schema

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://127.0.0.1","x")',
    "@SUM(A1)",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
]
PLAIN = ["fog", "a=b", "", "-0.5", "+3", "-1e-3", "-inf", "'=1", " =1", 'naïve, "quoted"']


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_gets_an_apostrophe_on_request(cell: str) -> None:
    frame = pd.DataFrame({"corruption": [cell], "accuracy": [-0.25]})
    assert read(csv_of(frame, escape_formulas=True))[1] == [f"'{cell}", "-0.25"]
    assert read(csv_of(frame, escape_formulas=False))[1] == [cell, "-0.25"]


@pytest.mark.parametrize("cell", PLAIN)
def test_other_cells_and_numbers_are_unchanged(cell: str) -> None:
    frame = pd.DataFrame({"a": [cell], "b": ["x"]})
    assert read(csv_of(frame, escape_formulas=True)) == [["a", "b"], [cell, "x"]]


def test_names_of_columns_are_cells_too() -> None:
    frame = pd.DataFrame({"=a": [1], "b": [2]})
    assert csv_of(frame, escape_formulas=True) == "'=a,b\n1,2\n"


@pytest.mark.parametrize(
    ("form", "out", "escape", "why"),
    [
        ("table", None, True, "is for CSV, found table: add --format csv"),
        (None, "x.json", True, "is for CSV, found json"),
        (None, "x.xlsx", False, r"found \.xlsx; rename it"),
        ("excel", None, False, "expected one of table, csv, json, parquet"),
        ("parquet", None, False, "expected --out FILE too"),
        ("csv", "nowhere/x.csv", False, "its folder does not exist"),
    ],
)
def test_unwritable_output_is_refused_before_computing(
    form: str | None, out: str | None, escape: bool, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        TableOptions(form, out, escape).checked()


HOSTILE = ("\x1b[2J\x1b]0;owned\x07fog", "=1+1")


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose corruptions are named like terminal escapes and a formula."""
    store = FeatureStore(str(tmp_path_factory.mktemp("hostile"))).prepare()
    cells(store, corruptions=HOSTILE)
    return store.location


@pytest.mark.parametrize("form", ["csv", "table"])
def test_a_terminal_gets_no_escape_codes(hostile_store: str, form: str) -> None:
    command = [sys.executable, "-m", "cli.app", "query", "shapes@net", "--by", "corruption"]
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [*command, "--format", form, "--store", hostile_store], stdout=inside
    ) as process:
        os.close(inside)
        shown = _read_all(terminal)
    assert process.returncode == 0
    assert b"fog" in shown
    assert b"\x1b" not in shown


def _read_all(terminal: int) -> bytes:
    """The output of a process on a terminal until it ends."""
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return shown


def test_cells_are_not_escaped_in_files_and_pipes(
    hostile_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found.csv"
    command = ["intro-pipe", "query", "shapes@net", "--by", "corruption", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--store", hostile_store])
    with pytest.raises(SystemExit):
        main()
    found = {row[0] for row in read(out.read_text())[1:]}
    assert found == set(HOSTILE)
    monkeypatch.setattr(sys, "argv", [*command, "--escape-formulas", "--store", hostile_store])
    with pytest.raises(SystemExit):
        main()
    found = {row[0] for row in read(out.read_text())[1:]}
    assert found == {HOSTILE[0], "'=1+1"}


@pytest.mark.parametrize(
    ("out", "form"),
    [(None, "table"), ("a.csv", "csv"), ("a.CSV", "csv"), ("a.txt", "table"), ("cells", "table")],
)
def test_the_suffix_of_a_file_chooses_its_format(out: str | None, form: str) -> None:
    assert TableOptions(out=out).checked().form == form


@pytest.mark.parametrize("out", ["a.xlsx", "a.tsv", "a.feather", "b.csv.gz"])
def test_an_unknown_suffix_is_refused(out: str) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in .csv, .json, .parquet or"):
        TableOptions(out=out).checked()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "label=cat",
            "expected a whole number for label, found 'cat'; classes are given by number",
        ),
        ("row=1.5", "expected a whole number for row, found '1.5'"),
        ("confidence=high", "expected a number for confidence, found 'high'"),
    ],
)
def test_a_condition_with_another_kind_of_value_is_refused(text: str, expected: str) -> None:
    schema = Schema((), (("row", "int64"), ("label", "int64"), ("confidence", "float64")))
    with pytest.raises(InputError, match=f"--where {text}: {expected}"):
        conditions([text], schema)
