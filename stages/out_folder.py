"""The folder outside the store that a contact sheet, or other files of a result, are copied to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.errors import InputError

PAGE, PICTURE = "sheet.html", "sheet-{number}.png"


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` if files cannot be written to ``folder``, because it is a file."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise InputError(f"--out {folder}: {existing} is a file, expected a folder")


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files; those of a sheet replace an earlier one, also if that had more pictures.

    Returns:
        The page of a sheet, if there is one, then the others.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while PAGE in files and (
        (name := PICTURE.format(number=number)) in files or (folder / name).is_file()
    ):
        if name not in files:
            (folder / name).unlink()
        number += 1
    names = sorted(files, key=lambda name: (name != PAGE, len(name), name))
    for name in names:
        (folder / name).write_bytes(files[name])
    return [folder / name for name in names]
