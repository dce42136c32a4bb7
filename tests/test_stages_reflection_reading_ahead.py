"""Images that come slowly are read ahead in many threads; rows, order and failures stay."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_data import write_image_folder

from stages.data import image_files
from stages.data.folder import folder_source
from stages.data.resize import Resize
from stages.data.source import ReaderSource, Rows, read_each
from stages.reflection.reading_ahead import fetching, is_slow

SLOW_FILE_S = 0.02


@dataclass(frozen=True)
class Bad:
    """Cannot read any block that contains one of the rows 4 to 11."""

    def read(self, start: int, stop: int, resizing: Resize) -> Rows:
        if start < 12 and stop > 4:
            raise OSError("bad sector")
        images = np.full((stop - start, *resizing.size, 3), start, np.uint8)
        return Rows(images, {"label": np.arange(start, stop)})

    def held_bytes(self) -> int:
        return 0

    def content(self) -> str:
        return ""


def equal(one: Rows, other: Rows) -> bool:
    columns = all(np.array_equal(one.columns[name], other.columns[name]) for name in one.columns)
    return np.array_equal(one.images, other.images) and columns and one.failed == other.failed


@pytest.fixture
def slow_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every file slow to open; the list gets the number of files that are opened at once."""
    waiting, lock = list[int](), threading.Lock()
    at_once = list[int]()
    require_regular = image_files.require_regular

    def slow(path: str) -> None:
        with lock:
            waiting.append(0)
            at_once.append(len(waiting))
        time.sleep(SLOW_FILE_S)
        with lock:
            waiting.pop()
        require_regular(path)

    monkeypatch.setattr(image_files, "require_regular", slow)
    return at_once


def files(tmp_path: Path) -> ReaderSource:
    return folder_source(write_image_folder(tmp_path / "images", 90), "x", "test", Resize((8, 8)))


def test_local_files_are_not_slow(tmp_path: Path) -> None:
    assert not is_slow(files(tmp_path))


def test_slow_files_are_opened_at_the_same_time(tmp_path: Path, slow_files: list[int]) -> None:
    source = files(tmp_path)
    assert is_slow(source)
    assert max(slow_files) == 1
    with fetching(source, ahead=True) as fetch:
        fetched = [fetch(start, start + 45) for start in (0, 45)]
        ahead = [rows() for rows in fetched]
    assert max(slow_files) > 12
    assert all(map(equal, ahead, [source.read(0, 45), source.read(45, 90)]))


def test_rows_that_cannot_be_read_fail_alone_wherever_blocks_begin() -> None:
    source = ReaderSource("bad", "test", "bad", ("a",), Resize((2, 2)), None, 40, Bad())
    with fetching(source, ahead=True) as fetch:
        rows = fetch(0, 40)()
    assert equal(rows, read_each(source, 0, 40))
    assert list(rows.failed) == list(range(4, 12))
