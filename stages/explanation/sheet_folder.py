"""The folder outside the store that a contact sheet is written to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.errors import InputError

PAGE, PICTURE = "sheet.html", "sheet-{number}.png"


def check_sheet_folder(folder: Path) -> None:
    """Raise ``InputError`` if a sheet cannot be written to ``folder``."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise InputError(f"--out {folder}: {existing} is a file, expected a folder")


def write_sheet(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write the page and the pictures of a sheet, and remove those of an earlier, longer one.

    Returns:
        The page, then the pictures.
    """
    check_sheet_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = len(files)  # of the first picture that this sheet lacks: one file is the page
    while (old := folder / PICTURE.format(number=number)).is_file():
        old.unlink()
        number += 1
    names = sorted(files, key=lambda name: (name != PAGE, len(name), name))
    for name in names:
        (folder / name).write_bytes(files[name])
    return [folder / name for name in names]
