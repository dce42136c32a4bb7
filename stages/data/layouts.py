"""The layouts in which data sets lie on disk: how each is recognised, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stages.data import corrupted, tiny_imagenet
from stages.data.anywhere import check_url
from stages.data.arrays import array_source
from stages.data.corrupted_folders import corrupted_folder_source, corruptions_below
from stages.data.folder import ALL, folder_source, has_split, splits_in
from stages.data.listing import listing
from stages.data.loose import has_loose_images, loose_source
from stages.data.manifest import SUFFIXES, manifest_source, manifest_splits
from stages.data.parquet_images import has_image_bytes, parquet_source, parquet_splits
from stages.data.regular import require_regular
from stages.data.resize import Resize
from stages.data.source import SPLIT_NAMES, SPLITS, ReaderSource
from stages.data.tar_images import archives_in, tar_source, tar_splits
from stages.data.tiny_imagenet import is_tiny_imagenet, tiny_imagenet_source
from stages.errors import DataNotFoundError, InputError

_ARRAY_SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True, slots=True)
class Layout:
    """A form in which a data set lies on disk.

    Attributes:
        name: what it is, in words.
        fits: whether there is data in this layout at a path; the second argument is the requested
            split.
        splits: the splits that the data set at a path may have.
        opened: the source of a path, a name, a split, and how images are resized.
    """

    name: str
    fits: Callable[[Path, str], bool]
    splits: Callable[[Path], tuple[str, ...]]
    opened: Callable[[Path, str, str, Resize], ReaderSource]


def layout_of(path: Path, split: str = "test") -> Layout | None:
    """The layout of the data at a path; ``None`` if it is not supported."""
    if path.name.startswith("."):
        return None
    return next((layout for layout in LAYOUTS if layout.fits(path, split)), None)


def open_path(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """One split of the data set at a path.

    Raises:
        InputError: its layout is not supported, or the content is not as expected.
    """
    if not path.is_dir():
        require_regular(path)
    if layout := layout_of(path, split):
        return layout.opened(path, name, split, resizing)
    raise InputError(
        f"{path}: no supported data, expected images in a folder or in <split>/<class>/, a .csv or "
        ".parquet file with a column 'path', a .npy or .npz file, or a corrupted set in the layout "
        f"of CIFAR-10-C or ImageNet-C{_array_in(path)}"
    )


def open_url(url: str, name: str, split: str, resizing: Resize) -> ReaderSource:
    """One split of Parquet files with images, or of tar archives, at a URL.

    Raises:
        InputError: the URL cannot be read, or there is something else.
    """
    check_url(url)
    if has_image_bytes(url):
        return parquet_source(url, name, split, resizing)
    if archives_in(url):
        return tar_source(url, name, split, resizing)
    raise InputError(
        f"{url}: no supported data, expected Parquet files with images or tar archives; copy other "
        "data sets to a disk"
    )


def _is_array_file(path: Path, _: str = "") -> bool:
    is_labels = path.stem == "labels" or path.stem.endswith("-labels")
    return path.suffix in _ARRAY_SUFFIXES and not is_labels and path.is_file()


def _arrays_in(folder: Path) -> dict[str, Path]:
    """Split -> ``<split>.npz`` or ``<split>.npy`` in a folder."""
    files = ((s, folder / f"{s}{suffix}") for s in SPLITS for suffix in reversed(_ARRAY_SUFFIXES))
    return {split: path for split, path in files if path.is_file()}


def _array_of_split(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    file = _arrays_in(path).get(split)
    if file is None:
        raise DataNotFoundError(f"{path}: has neither {split}.npz nor {split}.npy")
    return array_source(file, name, split, resizing)


def _corrupted(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    if split != "test":
        raise InputError(f"{path}: a corrupted set has no split '{split}', only test")
    return corrupted.corrupted_source(path, name, resizing)


def _loose(path: Path, name: str, split: str, resizing: Resize) -> ReaderSource:
    """Images without labels; for the split ``all``, their folders are the classes."""
    if split == ALL:
        return folder_source(path, name, split, resizing)
    if split != "test":
        raise DataNotFoundError(
            f"{path}: a folder of images has no split '{split}', only test, and all if its folders "
            f"are classes; expected {split}/<class>/<file> in it"
        )
    return replace(loose_source(path, name, resizing), how_to_label=_how_to_label(path))


def _how_to_label(path: Path) -> str:
    """Where classes belong in a folder of images; a folder that is a split lacks its parent."""
    if path.name in SPLIT_NAMES and has_split(path.parent, path.name):
        return (
            f"this folder is a split of a data set: use --dataset {path.parent} --split {path.name}"
        )
    way_out = f"expected {path}/test/<class>/<file>, and train/<class>/<file> for training"
    if listing(path).folders:
        way_out = f"use --split {ALL} if its folders are the classes; else {way_out}"
    return way_out


def _array_in(path: Path) -> str:
    """How to open an array in a folder, if there is one that is not named after a split."""
    if not path.is_dir():
        return ""
    arrays = (each for each in sorted(path.iterdir()) if _is_array_file(each))
    images = next((each for each in arrays if not each.stem.startswith(("y_", "label"))), None)
    return f"; to read an array give its file, such as {images}" if images else ""


def _is_manifest(path: Path, _: str) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _only_test(_: Path) -> tuple[str, ...]:
    return ("test",)


def _tiny_splits(_: Path) -> tuple[str, ...]:
    return tiny_imagenet.SPLITS


def _both(_: Path) -> tuple[str, ...]:
    return SPLITS


def _splits_in(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*SPLITS, *splits_in(path))))


LAYOUTS = (
    Layout("array file", _is_array_file, _only_test, array_source),
    Layout(
        "Parquet with images",
        lambda path, _: path.is_file() and has_image_bytes(path),
        parquet_splits,
        parquet_source,
    ),
    Layout(
        "tar", lambda path, _: path.is_file() and bool(archives_in(path)), tar_splits, tar_source
    ),
    Layout("manifest", _is_manifest, manifest_splits, manifest_source),
    Layout("folder of arrays", lambda path, _: bool(_arrays_in(path)), _both, _array_of_split),
    Layout(
        "CIFAR-10-C layout",
        lambda path, _: bool(corrupted.corruptions_in(path)),
        _only_test,
        _corrupted,
    ),
    Layout(
        "Tiny ImageNet", lambda path, _: is_tiny_imagenet(path), _tiny_splits, tiny_imagenet_source
    ),
    Layout(
        "image folder",
        lambda path, split: has_split(path, *SPLITS, split),
        _splits_in,
        folder_source,
    ),
    Layout(
        "folder of images",
        lambda path, _: path.is_dir() and has_loose_images(path),
        _only_test,
        _loose,
    ),
    Layout(
        "folder of Parquet with images",
        lambda path, _: path.is_dir() and has_image_bytes(path),
        parquet_splits,
        parquet_source,
    ),
    Layout(
        "folder of tar",
        lambda path, _: path.is_dir() and bool(archives_in(path)),
        tar_splits,
        tar_source,
    ),
    Layout(
        "ImageNet-C layout",
        lambda path, _: path.is_dir() and bool(corruptions_below(path)),
        _only_test,
        corrupted_folder_source,
    ),
    Layout(
        "image folder",  # with other names of splits than those above
        lambda path, _: path.is_dir() and bool(splits_in(path)),
        _splits_in,
        folder_source,
    ),
)
"""All layouts; the first that fits is used."""
