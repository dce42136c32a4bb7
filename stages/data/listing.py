"""List a folder of images: which entries are images, which are skipped, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import features

from pipeline.terminal import printable_line
from stages.errors import InputError

NOT_IMAGES = "not images by name"
NO_SUFFIX = "without a suffix such as .jpg"
UNREAD_FORMAT = "in formats that are not read here"
HIDDEN = "hidden"
COMPANION = "companions of other programs"
IN_SUBFOLDERS = "in subfolders"
OUTSIDE_CLASSES = "outside the class folders"
OTHER_FOLDERS = "other folders"
LINKED_FOLDER = "links to folders"
UNLISTED = "folders that cannot be listed"
BROKEN_LINK = "links that lead nowhere"

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
_JPEG2000 = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
_AVIF = (".avif", ".avifs")
# Image formats that Pillow cannot read, or not as the photograph that they show.
_OTHER_FORMATS = (
    *(".heic", ".heif", ".jxl", ".svg", ".svgz", ".psd", ".xcf", ".eps", ".ico", ".exr", ".hdr"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
_COMPANIONS = frozenset(
    (
        *("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
        *("system volume information", "__macosx", "__pycache__", ".ipynb_checkpoints", ".git"),
        *(".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".thumbnails"),
    )
)
_N_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of one folder, each kind sorted by name.

    Attributes:
        images: files that are images by their names.
        folders: folders that may hold images, including links to folders.
        left_out: ``(reason, name)`` of everything else; names of folders end in "/".
    """

    images: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Entries that are excluded from a data set for the same reason.

    Attributes:
        reason: such as "not images by name".
        count: number of files; a folder that is excluded as a whole counts as one.
        examples: the first few, for messages; names of folders end in "/".
    """

    reason: str
    count: int
    examples: tuple[str, ...]


@cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes, in lower case, of image files that the installed Pillow can read."""
    return (
        *_SUFFIXES,
        *(_JPEG2000 if features.check_codec("jpg_2000") else ()),
        *(_AVIF if "avif" in features.modules and features.check_module("avif") else ()),
    )


def listing(folder: Path) -> Listing:
    """List the entries of a folder.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}); expected a folder with permission to "
            "read and enter it"
        ) from error
    images: list[str] = []
    folders: list[str] = []
    left_out: list[tuple[str, str]] = []
    for name, is_folder, is_link in found:
        if reason := _reason_against(name, is_folder=is_folder):
            if is_link and reason not in (HIDDEN, COMPANION) and _is_broken(folder / name):
                reason = BROKEN_LINK
            left_out.append((reason, f"{name}/" if is_folder else name))
        else:
            (folders if is_folder else images).append(name)
    return Listing(tuple(images), tuple(folders), tuple(left_out))


def walk(root: Path) -> Iterator[tuple[str, Listing]]:
    """List a folder and all folders below it, parents first.

    Yields the path below ``root``, "" or ending in "/", and the listing. Links to folders are
    excluded, and so is a folder below ``root`` that cannot be listed.

    Raises:
        InputError: ``root`` cannot be listed.
    """
    below = [("", listing(root))]
    while below:
        place, found = below.pop()
        left_out, deeper = list(found.left_out), []
        for name in found.folders:
            if (root / place / name).is_symlink():
                left_out.append((LINKED_FOLDER, f"{name}/"))
                continue
            try:
                deeper.append((f"{place}{name}/", listing(root / place / name)))
            except InputError:
                left_out.append((UNLISTED, f"{name}/"))
        below += reversed(deeper)
        yield place, Listing(found.images, found.folders, tuple(left_out))


def images_below(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths below ``root`` of every image, sorted, and ``(reason, path)`` of everything else.

    Raises:
        InputError: ``root`` cannot be listed.
    """
    images: list[str] = []
    left_out: list[tuple[str, str]] = []
    for place, found in walk(root):
        images += [f"{place}{name}" for name in found.images]
        left_out += [(reason, f"{place}{name}") for reason, name in found.left_out]
    return sorted(images), left_out


def everything_below(root: Path, place: str) -> Iterator[tuple[str, str]]:
    """``(reason, path)`` of everything in the folder ``place`` below ``root``, including images.

    For a folder whose images are nested too deeply to be read. ``place`` ends in "/", and so do
    paths of folders.
    """
    try:
        for folder, found in walk(root / place):
            yield from ((IN_SUBFOLDERS, f"{place}{folder}{name}") for name in found.images)
            yield from ((reason, f"{place}{folder}{name}") for reason, name in found.left_out)
    except InputError:
        yield UNLISTED, place


def shallow_left_out(root: Path, place: str, found: Listing) -> Iterator[tuple[str, str]]:
    """Excluded entries of a folder from which only direct images are read."""
    yield from ((reason, f"{place}{name}") for reason, name in found.left_out)
    for folder in found.folders:
        if (root / place / folder).is_symlink():
            yield LINKED_FOLDER, f"{place}{folder}/"
        else:
            yield from everything_below(root, f"{place}{folder}/")


def tally(left_out: Iterable[tuple[str, str]]) -> tuple[LeftOut, ...]:
    """Count ``(reason, path)`` by reason, in order of first occurrence."""
    by_reason: dict[str, LeftOut] = {}
    for reason, path in left_out:
        old = by_reason.get(reason, LeftOut(reason, 0, ()))
        examples = old.examples
        if old.count < _N_EXAMPLES:
            examples = (*examples, shown(path))
        by_reason[reason] = LeftOut(reason, old.count + 1, examples)
    return tuple(by_reason.values())


def in_words(left_out: Sequence[LeftOut]) -> str:
    """Counts, reasons and examples in one line.

    >>> in_words([LeftOut("hidden", 1, (".x.png",)), LeftOut("in subfolders", 9, ("a/b.png",))])
    '1 hidden (.x.png), 9 in subfolders (a/b.png, ...)'
    """
    return ", ".join(
        f"{each.count:,} {each.reason} ({', '.join(each.examples)}"
        f"{', ...' if each.count > len(each.examples) else ''})"
        for each in left_out
    )


def expected_images(where: str, found: Iterable[tuple[str, str]]) -> str:
    """What was expected in a place without images, and what was found, for error messages."""
    entries = in_words(tally(found)) or "nothing"
    return f"expected {where} with a suffix such as .jpg or .png, found {entries}"


def left_out_facts(left_out: Sequence[LeftOut]) -> dict[str, Any]:  # Any: JSON
    """``left_out``: reason -> count and examples, as in receipts and ``--json``.

    Empty if nothing is excluded; such receipts have no entry for it.
    """
    facts = {
        each.reason: {"count": each.count, "examples": list(each.examples)} for each in left_out
    }
    return {"left_out": facts} if facts else {}


def shown(path: str) -> str:
    r"""A path as one line of valid text, whatever bytes its name has.

    >>> shown("caf\udce9\n.png")
    'caf\\xe9\\n.png'
    """
    return printable_line(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself; reading it will fail


def _is_broken(link: Path) -> bool:
    try:
        return not link.exists()
    except OSError:
        return True


def _reason_against(name: str, *, is_folder: bool) -> str:
    """Why an entry is excluded; empty for an image, and for a folder that may contain some."""
    low = name.lower()
    if low in _COMPANIONS or low.startswith("._"):
        return COMPANION
    if name.startswith("."):
        return HIDDEN
    if is_folder or low.endswith(image_suffixes()):
        return ""
    if low.endswith((*_OTHER_FORMATS, *_JPEG2000, *_AVIF)):
        return UNREAD_FORMAT
    return NOT_IMAGES if Path(name).suffix else NO_SUFFIX
