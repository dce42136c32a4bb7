"""Rows that a source cannot read: single ones, some, or all."""

from dataclasses import dataclass

import numpy as np
import pytest

from stages.data.source import Rows, read_each


@dataclass
class Torn:
    """Ten images, row i full of i; reading any of ``bad`` raises."""

    bad: tuple[int, ...] = ()
    error: type[Exception] = OSError
    n_rows: int = 10

    def read(self, start: int, stop: int) -> Rows:
        rows = np.arange(start, stop)
        if hit := [row for row in self.bad if start <= row < stop]:
            raise self.error(f"row {hit[0]}\nis torn")
        images = np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 3)).astype(np.uint8)
        return Rows(images, {"sample_id": rows.astype(np.str_), "label": rows.astype(np.int64)})


@pytest.mark.parametrize("bad", [(0,), (9,), (4, 5), (0, 1, 2, 4, 5, 6, 7, 8, 9)])
def test_unreadable_rows_are_zeros_and_the_others_are_read(bad: tuple[int, ...]) -> None:
    rows = read_each(Torn(bad), 0, 10)
    good = [row for row in range(10) if row not in bad]
    assert rows.failed == {row: f"cannot be read: row {row} is torn" for row in bad}
    assert rows.images[:, 0, 0, 0].tolist() == [row if row in good else 0 for row in range(10)]
    assert rows.columns["label"].tolist() == [row if row in good else -1 for row in range(10)]
    assert rows.columns["sample_id"].tolist() == [str(r) if r in good else "" for r in range(10)]


@pytest.mark.parametrize("row", [0, 3, 9])
def test_a_row_that_is_read_alone_is_judged_by_its_neighbour(row: int) -> None:
    rows = read_each(Torn((row,)), row, row + 1)
    assert (list(rows.failed), rows.columns["label"].tolist()) == ([0], [-1])


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 4)])
def test_where_no_row_can_be_read_the_error_is_raised(start: int, stop: int) -> None:
    with pytest.raises(OSError, match=f"row {start}"):
        read_each(Torn(tuple(range(10))), start, stop)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 4)])
def test_memory_that_runs_out_is_not_the_row_s_fault(start: int, stop: int) -> None:
    with pytest.raises(MemoryError):
        read_each(Torn((3,), MemoryError), start, stop)
