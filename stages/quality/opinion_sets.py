"""Data sets of image quality in their published layouts: TID2013, LIVE-MD, CSIQ and KADID-10k.

File names are matched without regard to case: TID2013's archive has ``I25.BMP`` as ``i25.bmp``, and
its list names ``I01_01_1.bmp`` where the folder has ``i01_01_1.bmp``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from math import nan, sqrt
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from stages.data.listing import images_below
from stages.errors import DataNotFoundError, InputError
from stages.quality.matlab import MOST_BYTES, check_size, read_arrays
from stages.quality.opinion_files import (
    Names,
    child,
    lines_of,
    number,
    require,
)
from stages.quality.pairs import UNKNOWN, Pair, Pairs, check_lengths

TID_LIST, TID_MOS, TID_STD = "mos_with_names.txt", "mos.txt", "mos_std.txt"
LIVE_PARTS = ("Part 1", "Part 2")
LIVE_LISTS, LIVE_SCORES = "Imagelists.mat", "Scores.mat"
CSIQ_TABLE, CSIQ_SHEET = "csiq.DMOS.xlsx", "all_by_image"
CSIQ_COLUMNS = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
CSIQ_TAGS: Mapping[str, str] = {
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
}
"""Distortion in the table -> what file names call it, in ``<image>.<tag>.<level>.png``."""

MOST_ROWS, MOST_COLUMNS = 10_000, 100
"""Rows and columns of a sheet that are read; CSIQ's has 900 rows."""

KADID_TABLE, KADID_COLUMNS = "dmos.csv", ("dist_img", "ref_img", "dmos", "var")


def opinion_set(folder: Path) -> Pairs:
    """The pairs of a data set in one of the published layouts.

    Raises:
        DataNotFoundError: no such folder, or none of the layouts fits.
        InputError: a list is damaged, or lists have different lengths.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder}: no such folder, expected a data set of image quality")
    for marker, reader in _LAYOUTS.items():
        if child(folder, marker) is not None:
            return reader(folder)
    raise DataNotFoundError(
        f"{folder}: expected TID2013 ({TID_LIST}), LIVE-MD ({LIVE_PARTS[0]}/{LIVE_LISTS}), CSIQ "
        f"({CSIQ_TABLE}) or KADID-10k ({KADID_TABLE}); for others, list the pairs in a table and "
        "use --pairs"
    )


def tid2013(folder: Path) -> Pairs:
    """TID2013: MOS from 0 to 9, and the standard deviation of each if ``mos_std.txt`` exists."""
    lines = lines_of(require(folder, TID_LIST))
    rows = [_tid_row(line, at, folder) for at, line in enumerate(lines, start=1)]
    std = _tid_numbers(folder, TID_STD)
    check = [(TID_STD, len(std))] if std else []
    if mos := _tid_numbers(folder, TID_MOS):
        check.append((TID_MOS, len(mos)))
    check_lengths(TID_LIST, len(rows), check)
    references = Names(folder, "reference_images")
    distorted = Names(folder, "distorted_images")
    pairs = [
        Pair(references[f"{name[:3]}.bmp"], distorted[name], mos, deviation, kind, level)
        for (mos, name, kind, level), deviation in zip(rows, std or [nan] * len(rows), strict=True)
    ]
    return Pairs("tid2013", folder, tuple(pairs), "TID2013", "MOS, 0 to 9, higher is better")


def live_md(folder: Path) -> Pairs:
    """LIVE multiply distorted: DMOS, higher is worse, of both parts.

    The standard deviation of an image is that of its difference scores over the subjects.
    """
    pairs = [pair for part in LIVE_PARTS for pair in _live_part(folder, part)]
    return Pairs("live-md", folder, tuple(pairs), "LIVE-MD", "DMOS, 0 to 100, higher is worse")


def csiq(folder: Path) -> Pairs:
    """CSIQ: DMOS from 0 to 1, higher is worse, with its standard deviation."""
    path = require(folder, CSIQ_TABLE)
    references, distorted = Names(folder, "src_imgs"), Names(folder, "dst_imgs", is_deep=True)
    pairs = []
    for row in _csiq_rows(path):
        image, kind, level = str(row["image"]), str(row["dst_type"]).strip(), row["dst_lev"]
        if kind not in CSIQ_TAGS or not isinstance(level, int | float):
            raise InputError(
                f"{path}: image {image} has distortion {kind!r} at level {level!r}, expected one "
                f"of {', '.join(CSIQ_TAGS)} and a number"
            )
        name = f"{image}.{CSIQ_TAGS[kind]}.{int(level)}.png"
        mos, std = (number(row[key], f"{path}: image {image}") for key in ("dmos", "dmos_std"))
        pairs.append(Pair(references[f"{image}.png"], distorted[name], mos, std, kind, int(level)))
    return Pairs("csiq", folder, tuple(pairs), "CSIQ", "DMOS, 0 to 1, higher is worse")


def kadid10k(folder: Path) -> Pairs:
    """KADID-10k: scores from 1 to 5, higher is better although the file calls them DMOS.

    Its column ``var`` is the variance of an image's ratings.
    """
    path = require(folder, KADID_TABLE)
    names = Names(folder, "images")
    found = list(csv.DictReader(lines_of(path)))
    header = tuple(found[0]) if found else ()
    if header[: len(KADID_COLUMNS)] != KADID_COLUMNS:
        raise InputError(
            f"{path}: expected the columns {', '.join(KADID_COLUMNS)} and rows below, found "
            f"{', '.join(map(str, header)) or 'none'}"
        )
    pairs = []
    for at, row in enumerate(found, start=2):
        mos, variance = (number(row[key], f"{path}: line {at}") for key in ("dmos", "var"))
        kind, level = _kind_and_level(str(row["dist_img"]))
        files = (names[str(row["ref_img"])], names[str(row["dist_img"])])
        pairs.append(Pair(*files, mos, _root(variance), kind, level))
    return Pairs("kadid10k", folder, tuple(pairs), "KADID-10k", "MOS, 1 to 5, higher is better")


_LAYOUTS: Mapping[str, Callable[[Path], Pairs]] = {
    TID_LIST: tid2013,
    LIVE_PARTS[0]: live_md,
    CSIQ_TABLE: csiq,
    KADID_TABLE: kadid10k,
}
"""A file that shows the layout -> the function that reads it."""


def _tid_row(line: str, at: int, folder: Path) -> tuple[float, str, str, int]:
    """MOS, name, kind and level of a line such as ``5.51429 I01_01_1.bmp``."""
    words = line.split()
    if len(words) != 2 or not re.fullmatch(r"i\d\d_\d\d_\d\.bmp", words[1].lower()):
        raise InputError(
            f"{folder / TID_LIST}: line {at} is {line.strip()[:60]!r}, expected a score and a "
            "name such as I01_01_1.bmp"
        )
    kind, level = _kind_and_level(words[1])
    return number(words[0], f"{folder / TID_LIST}: line {at}"), words[1], kind, level


def _tid_numbers(folder: Path, name: str) -> list[float]:
    """The numbers of a file with one per line; empty if it does not exist."""
    path = child(folder, name)
    return [] if path is None else [number(line, f"{path}: a line") for line in lines_of(path)]


def _kind_and_level(name: str) -> tuple[str, int]:
    """Kind and level in a name such as ``I01_07_3.bmp``; unknown in others."""
    found = re.search(r"_(\d+)_(\d+)\.\w+$", name)
    return (found[1], int(found[2])) if found else ("", UNKNOWN)


def _live_part(folder: Path, part: str) -> Iterator[Pair]:
    """The pairs of one part; ``ref4dist`` counts references from 1."""
    place = require(folder, part)
    lists = read_arrays(require(place, LIVE_LISTS), ("distimgs", "refimgs", "ref4dist"))
    scores = read_arrays(require(place, LIVE_SCORES), ("DMOSscores",), ("dist_diffscores",))
    distorted, references = _texts(lists["distimgs"]), _texts(lists["refimgs"])
    of_distorted = [int(each) for each in lists["ref4dist"].ravel()]
    dmos = [float(each) for each in scores["DMOSscores"].ravel()]
    where, n = f"{part}/{LIVE_LISTS}", len(distorted)
    lengths = [(f"{part}: ref4dist", len(of_distorted)), (f"{part}: DMOSscores", len(dmos))]
    check_lengths(where, n, lengths)
    if not all(1 <= each <= len(references) for each in of_distorted):
        raise InputError(f"{where}: ref4dist names others than the {len(references)} references")
    std = _over_subjects(scores.get("dist_diffscores"), n)
    paths = {Path(image).name.lower(): image for image in images_below(place)[0]}
    kind = "blur and JPEG" if part == LIVE_PARTS[0] else "blur and noise"
    for name, index, mos, deviation in zip(distorted, of_distorted, dmos, std, strict=True):
        files = (paths.get(each.lower(), each) for each in (references[index - 1], name))
        reference, image = (f"{place.name}/{each}" for each in files)
        yield Pair(reference, image, mos, deviation, kind)


def _texts(cells: Any) -> list[str]:  # Any: a cell array of MATLAB
    """The texts in a cell array."""
    return [str(cell.item() if getattr(cell, "size", 0) == 1 else cell) for cell in cells.ravel()]


def _over_subjects(scores: Any, n: int) -> list[float]:  # Any: an array, or None
    """Standard deviation of each image's scores over the subjects, who may be rows or columns."""
    import numpy as np

    if scores is None or scores.ndim != 2 or n not in scores.shape:
        return [nan] * n
    by_image = np.asarray(scores, dtype=np.float64)
    by_image = by_image if by_image.shape[1] == n else by_image.T
    rated = np.isfinite(by_image).sum(axis=0)
    with np.errstate(invalid="ignore"):
        std = np.nanstd(np.where(rated > 1, by_image, 0.0), axis=0, ddof=1)
    return [float(each) for each in np.where(rated > 1, std, nan)]


def _root(variance: float) -> float:
    """Standard deviation; a negative variance stays negative, which `Pairs` refuses."""
    return sqrt(variance) if variance >= 0 else variance


def _check_workbook(path: Path) -> None:
    """Raise ``InputError`` for a workbook that unpacks to more than `MOST_BYTES`."""
    with ZipFile(path) as archive:
        n_bytes = sum(part.file_size for part in archive.infolist())
    if n_bytes > MOST_BYTES:
        raise InputError(f"{path}: unpacks to {n_bytes:,} bytes, expected at most {MOST_BYTES:,}")


def _csiq_rows(path: Path) -> Iterator[dict[str, Any]]:  # Any: cells of a sheet
    """The rows of the sheet with all images, below the row with the names of the columns."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs openpyxl, which is not installed: pip install '.[quality]'"
        ) from error
    check_size(path)
    try:
        _check_workbook(path)
        book = load_workbook(path, read_only=True, data_only=True)
        rows = book[CSIQ_SHEET].iter_rows(max_row=MOST_ROWS, max_col=MOST_COLUMNS, values_only=True)
        table = [list(row) for row in rows]
        book.close()
    except InputError:
        raise
    except Exception as error:  # openpyxl raises nearly anything on a broken file
        raise InputError(
            f"{path}: expected a workbook with the sheet {CSIQ_SHEET} ({error})"
        ) from error
    names: list[Any] = []
    for row in table:
        if not names and set(CSIQ_COLUMNS) <= {str(cell) for cell in row}:
            names = [str(cell) for cell in row]
        elif names and row[names.index("image")] is not None:
            yield dict(zip(names, row, strict=True))
    if not names:
        raise InputError(f"{path}: expected the columns {', '.join(CSIQ_COLUMNS)}, found others")
