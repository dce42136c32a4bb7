"""Files of results that are copied to a folder."""

from pathlib import Path

import pytest

from stages.errors import InputError
from stages.out_folder import check_folder, write_files


def test_pictures_of_a_longer_sheet_are_removed_and_other_files_kept(tmp_path: Path) -> None:
    write_files(tmp_path, {"sheet.html": b"1", "sheet-1.png": b"1", "sheet-2.png": b"1"})
    (tmp_path / "notes.txt").write_text("mine")

    written = write_files(tmp_path, {"a.csv": b"2", "sheet.html": b"2", "sheet-1.png": b"2"})

    assert [path.name for path in written] == ["sheet.html", "a.csv", "sheet-1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.csv", "notes.txt", "sheet-1.png", "sheet.html")
    ]


def test_files_that_are_no_sheet_leave_the_pictures_of_one(tmp_path: Path) -> None:
    write_files(tmp_path, {"sheet.html": b"1", "sheet-1.png": b"1"})
    write_files(tmp_path, {"report.md": b"2"})

    assert (tmp_path / "sheet-1.png").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["file", "file/deeper"])
def test_a_file_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, expected a folder"):
        check_folder(tmp_path / name)
