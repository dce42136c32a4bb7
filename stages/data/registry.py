"""The image sources by name or path: opening one, and listing what is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from stages.data import corrupted
from stages.data.arrays import array_source
from stages.data.folder import folder_source, has_loose_images, is_image_folder, loose_source
from stages.data.known import KNOWN, Known, data_root_path, folder_of, how_to_get
from stages.data.source import SPLITS, ImageSource, ReaderSource, first_rows, without_labels
from stages.errors import DataNotFoundError, InputError
from store.disk import spelled_out

LOOSE = "folder of images"
_ARRAY_SUFFIXES = (".npz", ".npy")
_Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What `intro-pipe datasets` shows of one data set.

    Attributes:
        name: what ``open_source`` takes.
        description: one line.
        licence: as far as it is known.
        n_rows: images of each split.
        class_names: name of each label.
        is_on_disk: whether it is there.
        where: folder or file; empty if it is not there or needs none.
        how_to_get: what to do if it is not there; empty if it is.
        problem: why a set that is there cannot be opened; empty if it can.
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
    """How to open a source: what travels to workers in place of the source.

    Without ``labels`` it is one of images of no class.
    """

    dataset: str
    split: str
    data_root: str
    image_size: int = 32
    limit: int | None = None
    corruptions: tuple[str, ...] = ()
    labels: bool = True

    def __post_init__(self) -> None:
        """Make places absolute: a worker may run in another folder than the driver."""
        object.__setattr__(self, "data_root", str(data_root_path(self.data_root)))
        if self.dataset not in KNOWN:
            place = existing_path(self.dataset, Path(self.data_root))
            object.__setattr__(self, "dataset", str(place))

    def open(self) -> ImageSource:
        """The source; see ``open_source``."""
        source = open_source(
            self.dataset, self.split, self.data_root, self.image_size, self.limit, self.corruptions
        )
        return source if self.labels else without_labels(source)


def open_source(
    dataset: str | Path,
    split: str = "test",
    data_root: str | Path | None = None,
    image_size: int = 32,
    limit: int | None = None,
    corruptions: tuple[str, ...] = (),
) -> ReaderSource:
    """One split of a data set.

    Args:
        dataset: a registered name, a path, or the name of something under the data root: a folder
            in the layout of CIFAR-10-C, an image folder, a ``.npz`` or ``.npy`` file, a folder of
            ``train`` and ``test`` in one of these two formats, or a folder of images.
        split: ``train`` or ``test``.
        data_root: see ``data_root_path``.
        image_size: height and width that every image is brought to, in pixels.
        limit: take the first rows only.
        corruptions: take only these of a corrupted set.

    Raises:
        DataNotFoundError: it is not there; says how to get it.
        InputError: it is there and does not hold what it should.
    """
    if split not in SPLITS:
        raise InputError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise InputError(f"image size is {image_size}, expected at least 1 pixel")
    root, name, size = data_root_path(data_root), str(dataset), (image_size, image_size)
    if name not in KNOWN:
        found = _open_path(existing_path(name, root), split, size)
        return first_rows(corrupted.only_corruptions(found, corruptions), limit)
    known = KNOWN[name]
    if split not in known.n_rows:
        raise InputError(f"{name}: has no split '{split}', only {', '.join(known.n_rows)}")
    folder = folder_of(name, root)
    if folder is None:
        raise DataNotFoundError(
            f"{name}: not under {root}, expected {' or '.join(known.folders)}; get it "
            f"({how_to_get(name)}) or name its place with --data-root"
        )
    found = known.opener(folder, split, size)
    return first_rows(corrupted.only_corruptions(found, corruptions), limit)


def known_datasets(data_root: str | Path | None = None) -> list[DatasetInfo]:
    """The registered data sets, then whatever else under the data root has a layout we read."""
    root = data_root_path(data_root)
    infos = [_info_of_known(name, known, root) for name, known in KNOWN.items()]
    taken = {folder.split("/")[0] for known in KNOWN.values() for folder in known.folders}
    children = sorted(root.iterdir()) if root.is_dir() else []
    others = [path for path in children if path.name not in taken and _layout(path)]
    return infos + [_info_of_path(path) for path in others]


def existing_path(name: str, root: Path) -> Path:
    """The place of a data set: below the root by its name, or a path; may raise."""
    path = spelled_out(name)
    is_plain_name = len(path.parts) == 1 and name == path.name
    places = (root / path, path) if is_plain_name else (path,)
    for place in places:
        if place.exists():
            return place.absolute()
    looked = " and ".join(str(place.absolute()) for place in places)
    near = "".join(f" (did you mean {known}?)" for known in get_close_matches(name, KNOWN, n=1))
    raise DataNotFoundError(
        f"{name}: no such data set{near}, expected one of {', '.join(KNOWN)}, or a path; looked at "
        f"{looked}; `intro-pipe datasets` lists what is there, --data-root names another place"
    )


def _layout(path: Path) -> str:
    """What kind of data lies at a path, in words; empty if none that we read."""
    if path.name.startswith("."):
        return ""
    if path.is_file():
        is_labels = path.stem == "labels" or path.stem.endswith("-labels")
        return "array file" if path.suffix in _ARRAY_SUFFIXES and not is_labels else ""
    if _split_files(path):
        return "folder of arrays"
    if corrupted.corruptions_in(path):
        return "CIFAR-10-C layout"
    if is_image_folder(path):
        return "image folder"
    return LOOSE if has_loose_images(path) else ""


def _split_files(folder: Path) -> dict[str, Path]:
    """``<split>.npz`` or ``<split>.npy`` of each split that a folder has."""
    files = ((s, folder / f"{s}{suffix}") for s in SPLITS for suffix in reversed(_ARRAY_SUFFIXES))
    return {split: path for split, path in files if path.is_file()}


def _open_path(path: Path, split: str, size: _Size) -> ReaderSource:
    layout, name = _layout(path), name_of(path)
    if layout == "array file":
        return array_source(path, name, split, size)
    if layout == "folder of arrays":
        file = _split_files(path).get(split)
        if file is None:
            raise DataNotFoundError(f"{path}: has neither {split}.npz nor {split}.npy")
        return array_source(file, name, split, size)
    if layout == "CIFAR-10-C layout":
        if split != "test":
            raise InputError(f"{path}: a corrupted set has no split '{split}', only test")
        return corrupted.corrupted_source(path, name, size)
    if layout == "image folder":
        return folder_source(path, name, split, size)
    if layout == LOOSE:
        if split != "test":
            raise DataNotFoundError(f"{path}: a folder of images has no split '{split}', only test")
        return loose_source(path, name, size)
    raise InputError(
        f"{path}: no data that is read here, expected train|test/<class>/<image>, labels.npy with "
        "<corruption>.npy, a .npz or .npy file, or images in a folder"
    )


def name_of(path: Path) -> str:
    """What the data set at a path is called."""
    name = path.stem if path.is_file() else path.resolve().name if not path.name else path.name
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)  # names stand in paths and in `data@model`


def _info_of_known(name: str, known: Known, root: Path) -> DatasetInfo:
    folder = folder_of(name, root)
    how = "" if folder else how_to_get(name)
    where = str(folder) if folder and known.folders else ""
    problem = ""
    if folder is not None and known.folders:  # what is installed needs no look
        try:
            known.opener(folder, "test", (32, 32))
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
    layout, size = _layout(path), (32, 32)
    n_rows: dict[str, int] = {}
    class_names: tuple[str, ...] = ()
    problem = ""
    splits = SPLITS if layout in ("image folder", "folder of arrays") else ("test",)
    for split in splits:
        try:
            source = _open_path(path, split, size)
            n_rows[split], class_names = source.n_rows, source.class_names
        except DataNotFoundError:
            continue  # a set may have one split only
        except InputError as error:
            problem = str(error)
    return DatasetInfo(
        name=path.name,  # what --dataset takes
        description=layout,
        licence="unknown",
        n_rows=n_rows,
        class_names=class_names,
        is_on_disk=True,
        where=str(path),
        problem=problem,
    )
