"""Open image sources by name or path, and list the known ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from stages.data import corrupted
from stages.data.altering import Alteration, altering
from stages.data.anywhere import is_url
from stages.data.classes import with_classes
from stages.data.corrupting import corrupting
from stages.data.corruptions.cells import Cells
from stages.data.decoding import PLAIN, Decoding
from stages.data.known import KNOWN, Known, data_root_path, folder_of, how_to_get
from stages.data.layouts import layout_of, open_path, open_url
from stages.data.picked import Sample, sampled
from stages.data.regular import refused
from stages.data.resize import Resize, resizing_to
from stages.data.source import ReaderSource, first_rows, without_labels
from stages.errors import DataNotFoundError, InputError
from store.disk import spelled_out

DEFAULT_IMAGE_SIZE = 32
"""Height and width to which images are resized by default, in pixels."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What `intro-pipe datasets` shows about a data set.

    Attributes:
        name: name for ``open_source``.
        description: one line.
        licence: licence, as far as known.
        n_rows: number of images per split.
        class_names: name of each label.
        is_on_disk: whether it exists.
        where: folder or file; empty if it is missing or needs none.
        how_to_get: how to get it; empty if it exists.
        problem: why an existing set cannot be opened; empty if it can.
    """

    name: str
    description: str
    licence: str
    n_rows: Mapping[str, int]
    class_names: tuple[str, ...]
    is_on_disk: bool
    where: str = ""
    how_to_get: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """How to open a source; sent to workers in place of the source.

    Without ``labels`` its images have no class. ``classes`` are names in the order of the labels,
    as in ``open_source``. A ``sample`` is drawn from the rows within the ``limit``. With ``cells``,
    all images are then corrupted when they are read, and with ``alteration`` denoised and
    augmented. ``decoding`` replaces that of ``image_size``, unless it is the default.
    """

    dataset: str
    split: str
    data_root: str
    image_size: int | Resize = DEFAULT_IMAGE_SIZE
    limit: int | None = None
    corruptions: tuple[str, ...] = ()
    labels: bool = True
    classes: tuple[str, ...] = ()
    cells: Cells | None = None
    decoding: Decoding = PLAIN
    sample: Sample | None = None
    alteration: Alteration | None = None

    def __post_init__(self) -> None:
        """Make paths absolute: a worker may run in another folder than the driver."""
        object.__setattr__(self, "data_root", str(data_root_path(self.data_root)))
        if self.dataset not in KNOWN and not is_url(self.dataset):
            place = existing_path(self.dataset, Path(self.data_root))
            object.__setattr__(self, "dataset", str(place))

    def open(self) -> ReaderSource:
        """Open the source; see ``open_source``."""
        resizing = self.image_size
        if self.decoding != PLAIN:
            resizing = replace(resizing_to(resizing), decoding=self.decoding)
        source = open_source(
            self.dataset,
            self.split,
            self.data_root,
            resizing,
            self.limit,
            self.corruptions,
            self.classes,
        )
        source = source if self.labels else without_labels(source)
        source = sampled(source, self.sample) if self.sample else source
        source = corrupting(source, self.cells) if self.cells else source
        return altering(source, self.alteration) if self.alteration else source


def open_source(
    dataset: str | Path,
    split: str = "test",
    data_root: str | Path | None = None,
    image_size: int | Resize = DEFAULT_IMAGE_SIZE,
    limit: int | None = None,
    corruptions: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> ReaderSource:
    """Open one split of a data set.

    Args:
        dataset: a registered name, a path, a URL of Parquet with images or of tar archives, or the
            name of something under the data root, in any of the layouts of
            `stages.data.layouts`.
        split: ``train``, ``test``, the name of a split's folder, or ``all`` for a folder that has
            class folders and no splits.
        data_root: see ``data_root_path``.
        image_size: how every image is resized; a number is the height and width in pixels, and
            the layout determines whether images are stretched or cropped (`Resize`).
        limit: use only the first rows.
        corruptions: use only these corruptions of a corrupted set.
        classes: names of the classes in the order of their labels: all those of the data set, and
            possibly more. By default the data set determines them; those of an image folder are in
            string order, as in torchvision's ``ImageFolder``.

    Raises:
        DataNotFoundError: it does not exist; the message says how to get it.
        InputError: it exists but has unexpected content.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", split):
        raise InputError(
            f"split is {split!r}, expected train, test, or the name of a folder, in letters, "
            "digits and . _ + -"
        )
    root, name, resizing = data_root_path(data_root), str(dataset), resizing_to(image_size)
    if is_url(name):
        found = open_url(name, _name_in(name), split, resizing)
    elif name not in KNOWN:
        place = existing_path(name, root)
        with refused(place):
            found = open_path(place, name_of(place), split, resizing)
    else:
        found = _open_known(name, root, split, resizing)
    found = corrupted.only_corruptions(found, corruptions)
    return first_rows(with_classes(found, classes) if classes else found, limit)


def _open_known(name: str, root: Path, split: str, resizing: Resize) -> ReaderSource:
    known = KNOWN[name]
    if split not in known.n_rows:
        raise InputError(f"{name}: has no split '{split}', only {', '.join(known.n_rows)}")
    folder = folder_of(name, root)
    if folder is None:
        raise DataNotFoundError(
            f"{name}: not under {root}, expected {' or '.join(known.folders)}; get it "
            f"({how_to_get(name)}) or give its location with --data-root"
        )
    with refused(folder):
        return known.opener(folder, split, resizing)


def known_datasets(data_root: str | Path | None = None) -> list[DatasetInfo]:
    """The registered data sets, then everything else under the data root in a known layout.

    Raises:
        InputError: the data root cannot be read.
    """
    root = data_root_path(data_root)
    infos = [_info_of_known(name, known, root) for name, known in KNOWN.items()]
    taken = {folder.split("/")[0] for known in KNOWN.values() for folder in known.folders}
    with refused(root):
        children = sorted(root.iterdir()) if root.is_dir() else []
    others = (_info_of_path(path) for path in children if path.name not in taken)
    return infos + [info for info in others if info.n_rows or info.problem]


def existing_path(name: str, root: Path) -> Path:
    """Path of a data set: its name below the root, or a path; raises ``DataNotFoundError``."""
    if is_url(name):
        scheme = name.partition("://")[0]  # the rest may hold a password
        raise DataNotFoundError(
            f"{scheme}://...: is a URL, expected a data set on disk: copy it, or mount the bucket"
        )
    path = spelled_out(name)
    is_plain_name = len(path.parts) == 1 and name == path.name
    places = (root / path, path) if is_plain_name else (path,)
    for place in places:
        with refused(place):
            if place.exists():
                return place.absolute()
    here = {*KNOWN}
    looked = " and ".join(str(place.absolute()) for place in places)
    with suppress(OSError):
        here |= {each.name for each in root.iterdir()}
    near = " or ".join(get_close_matches(name, sorted(here), n=2))
    hint = f" (did you mean {near}?)" if near else ""
    raise DataNotFoundError(
        f"{name}: no such data set{hint}; looked at {looked}; `intro-pipe datasets` lists all, "
        "--data-root sets another location"
    )


def name_of(path: Path) -> str:
    """Name of the data set at a path."""
    name = path.stem if path.is_file() else path.resolve().name if not path.name else path.name
    return _fit_for_names(name)


def _name_in(url: str) -> str:
    path = PurePosixPath(url)
    return _fit_for_names(path.stem if path.suffix.lower() in (".tar", ".parquet") else path.name)


def _fit_for_names(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)  # names stand in paths and in `data@model`


def _info_of_known(name: str, known: Known, root: Path) -> DatasetInfo:
    folder = folder_of(name, root)
    how = "" if folder else how_to_get(name)
    where = str(folder) if folder and known.folders else ""
    problem = ""
    if folder is not None and known.folders:  # installed sets need no check
        try:
            with refused(folder):
                known.opener(folder, [*known.n_rows][-1], Resize((32, 32)))
        except InputError as error:
            problem = str(error)
    return DatasetInfo(
        name=name,
        description=known.description,
        licence=known.licence,
        n_rows=known.n_rows,
        class_names=known.class_names,
        is_on_disk=folder is not None,
        where=where,
        how_to_get=how,
        problem=problem,
    )


def _info_of_path(path: Path) -> DatasetInfo:
    n_rows: dict[str, int] = {}
    class_names: tuple[str, ...] = ()
    layout, problem = None, ""
    splits: tuple[str, ...] = ()
    try:
        with refused(path):
            layout = layout_of(path)
            splits = layout.splits(path) if layout else ()
    except InputError as error:
        problem = str(error)
    for split in splits:
        try:
            with refused(path):
                source = open_path(path, name_of(path), split, Resize((32, 32)))
            n_rows[split], class_names = source.n_rows, source.class_names
        except DataNotFoundError:
            continue  # a set may have one split only
        except InputError as error:
            problem = str(error)
    return DatasetInfo(
        name=path.name,  # as accepted by --dataset
        description=layout.name if layout else "unknown" if problem else "",
        licence="unknown",
        n_rows=n_rows,
        class_names=class_names,
        is_on_disk=True,
        where=str(path),
        problem=problem,
    )
