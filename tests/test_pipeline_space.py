"""Room for what is to be written is looked for before a run starts."""

from pathlib import Path

import pytest

from pipeline.errors import ResourceError
from pipeline.space import check_space


def test_too_little_room_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1,000,000.0 GB are to be written, .* are free: make"):
        check_space(str(tmp_path / "not" / "there" / "yet"), 10**15)


def test_room_enough_is_enough(tmp_path: Path) -> None:
    check_space(str(tmp_path), 1)


def test_the_disk_is_that_of_the_folder(tiny_disk: Path) -> None:
    with pytest.raises(ResourceError):
        check_space(str(tiny_disk / "store"), 300 * 1024)
