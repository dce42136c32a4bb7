"""Groups of rows, made without pandas, equal those of a loop over the rows."""

import subprocess
import sys
from math import isnan, nan
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cells import cells

from stages.reflection.groups import group_codes
from store.catalog import FeatureStore

ROWS = pa.table(
    {
        "kind": ["snow", "fog", None, "snow", None, "fog", "snow"],
        "level": [2, 1, 1, 2, 1, 1, 3],
        "grade": [0.5, nan, nan, 0.5, 1.0, nan, -0.0],
        "is_new": [True, False, True, True, False, False, True],
    }
)


def encoded(values, numbers):
    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(values))


AS_IN_FILES = [
    ROWS,
    ROWS.set_column(0, "kind", encoded(["snow", "fog"], [0, 1, None, 0, None, 1, 0])),
    ROWS.set_column(0, "kind", encoded(["fog", None, "rain", "snow"], [3, 0, 1, 3, 1, 0, 3])),
    ROWS.set_column(0, "kind", encoded(["snow", "fog", "ice"], [0, 1, 2, 0, 2, 1, 0])),
    ROWS.set_column(0, "kind", encoded(["snow", "fog", "snow"], [0, 1, 1, 2, 0, 1, 2])),
    ROWS.set_column(1, "level", [pa.array([2**63 - 1, -(2**63), 0, 0, 5, -5, 0])]),
    ROWS.set_column(1, "level", [pa.array([2, 1, None, 2, 1, None, 3])]),
    ROWS.set_column(1, "level", [pa.array([2**64 - 1, 1, 0, 0, 1, 5, 3], pa.uint64())]),
    pa.concat_tables([ROWS, ROWS]),
]


@pytest.mark.parametrize("by", [(), ("kind",), ("kind", "level"), ("grade", "is_new", "kind")])
@pytest.mark.parametrize("rows", AS_IN_FILES)
def test_each_row_is_in_the_group_of_its_own_values(rows: pa.Table, by: tuple[str, ...]) -> None:
    codes, groups = group_codes(rows, by)
    for code, row in zip(codes, rows.to_pylist(), strict=True):
        for value, name in zip(groups[code], by, strict=True):
            is_missing = row[name] is None or row[name] != row[name]
            assert isnan(value) if is_missing else value == row[name]
    assert set(codes) == set(range(len(groups)))
    assert len(set(groups)) == len(groups)


def test_many_distinct_values_in_two_columns_are_renumbered() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 10**9, 3000) for name in "ab"}
    codes, groups = group_codes(pa.table(values), ("a", "b"))
    assert [groups[code] for code in codes] == list(zip(values["a"], values["b"], strict=True))


def test_no_rows_are_no_groups() -> None:
    assert group_codes(ROWS.slice(0, 0), ("kind",))[1] == group_codes(ROWS.slice(0, 0), ())[1] == []


def test_groups_are_those_of_the_rows_that_are_kept() -> None:
    keep = np.array([False, True, True, False, False, True, False])
    codes, groups = group_codes(ROWS, ("kind",), keep)
    assert codes.tolist() == [0, 1, 0]
    assert groups[0] == ("fog",)
    assert group_codes(ROWS, ("kind",), ~keep & keep)[1] == []


def test_a_query_imports_no_slow_libraries(store: FeatureStore) -> None:
    found = cells(store)
    words = ["query", found.name, "--by", "corruption", "--metric", "ece,nll"]
    program = (
        "import sys; from cli.app import main\n"
        f"sys.argv = ['intro-pipe', *{words}, '--store', {store.location!r}, '--json']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'pandas', 'torch', 'rich', 'zarr', 'PIL', 'pyarrow.compute'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert ended.stdout.endswith("set()\n"), ended.stderr
