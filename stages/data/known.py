"""The data sets that have a name: what they are, where they may lie, how they are opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.data import cifar, corrupted, idx, outside, svhn
from stages.data.corruptions.names import CORRUPTIONS
from stages.data.digits import digits_source
from stages.data.folder import loose_source
from stages.data.source import ReaderSource
from store.disk import spelled_out

_Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """A data set that has a name here.

    Attributes:
        description: one line.
        licence: as far as its publishers state one.
        n_rows: images of each split.
        class_names: name of each label.
        folders: where it may lie, relative to the data root or absolute; empty if it is installed.
        marker: a file that shows that a folder holds it.
        opener: makes the source from folder, split and size.
        by_hand: where to get it, for one that cannot be fetched.
    """

    description: str
    licence: str
    n_rows: Mapping[str, int]
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    marker: str
    opener: Callable[[Path, str, _Size], ReaderSource]
    by_hand: str = ""


_ODIN = "its archive is linked in the README of github.com/facebookresearch/odin"

KNOWN: Mapping[str, Known] = {
    "digits": Known(
        "scikit-learn's handwritten digits, 8x8 grey",
        "CC BY 4.0 (UCI, optical recognition of handwritten digits)",
        {"train": 1_297, "test": 500},
        idx.MNIST_NAMES,
        (),
        "",
        lambda _, split, size: digits_source(split, size),
    ),
    "cifar10": Known(
        "CIFAR-10, 32x32 colour photographs",
        "none stated",
        {"train": 50_000, "test": 10_000},
        cifar.CLASS_NAMES,
        (cifar.FOLDER, f"cifar10/{cifar.FOLDER}"),
        "test_batch",
        cifar.cifar10_source,
    ),
    "cifar10c": Known(
        "CIFAR-10-C, the test set under 19 corruptions at 5 severities",
        "CC BY 4.0 (Zenodo record 2535967)",
        {"test": 950_000},
        cifar.CLASS_NAMES,
        corrupted.CIFAR10C_FOLDERS,
        "*.npy",
        lambda folder, _, size: corrupted.corrupted_source(
            folder, "cifar10c", size, required=CORRUPTIONS
        ),
    ),
    "fashion-mnist": Known(
        "Fashion-MNIST, 28x28 grey pictures of clothes",
        "MIT",
        {"train": 60_000, "test": 10_000},
        idx.FASHION_NAMES,
        ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "*-images-idx3-ubyte*",
        lambda folder, split, size: idx.idx_source(
            folder, "fashion-mnist", idx.FASHION_NAMES, split, size
        ),
    ),
    "mnist": Known(
        "MNIST, 28x28 grey handwritten digits",
        "CC BY-SA 3.0 as usually stated",
        {"train": 60_000, "test": 10_000},
        idx.MNIST_NAMES,
        ("mnist", "MNIST/raw"),
        "*-images-idx3-ubyte*",
        lambda folder, split, size: idx.idx_source(folder, "mnist", idx.MNIST_NAMES, split, size),
    ),
    "svhn": Known(
        "SVHN, 32x32 house numbers",
        "for non-commercial use",
        {"train": 73_257, "test": 26_032},
        idx.MNIST_NAMES,
        ("svhn", "SVHN"),
        svhn.MARKER,
        svhn.svhn_source,
    ),
    "svhn-10k": Known(
        "the first 1,000 of each class of SVHN's test images, as OOD tables take them",
        "for non-commercial use",
        {"test": 10_000},
        idx.MNIST_NAMES,
        ("svhn", "SVHN"),
        svhn.MARKER,
        lambda folder, split, size: svhn.svhn_source(
            folder, split, size, name="svhn-10k", n_of_class=svhn.N_OF_CLASS
        ),
        "`intro-pipe datasets --download svhn` brings it",
    ),
    "textures": Known(
        "Describable Textures (DTD), photographs of 47 kinds",
        "for research",
        {"test": 5_640},
        (),
        ("dtd", "dtd/dtd"),
        "images",
        lambda folder, _, size: loose_source(folder / "images", "textures", size),
    ),
    "places365": Known(
        "10,000 test photographs of Places365, in places365/test_subset/<any>/<file>",
        "for non-commercial research",
        {"test": 10_000},
        (),
        ("places365",),
        "test_subset",
        lambda folder, _, size: loose_source(folder / "test_subset", "places365", size),
        "test images of places2.csail.mit.edu, 10,000 of them in places365/test_subset/<any>/",
    ),
    "lsun-c": Known(
        "LSUN's test photographs, 32x32 crops, in LSUN/<any>/<file>",
        "not stated",
        {"test": 10_000},
        (),
        ("LSUN", "LSUN_crop"),
        "*",
        lambda folder, _, size: loose_source(folder, "lsun-c", size),
        _ODIN,
    ),
    "lsun-r": Known(
        "LSUN's test photographs, resized to 32x32, in LSUN_resize/<any>/<file>",
        "not stated",
        {"test": 10_000},
        (),
        ("LSUN_resize",),
        "*",
        lambda folder, _, size: loose_source(folder, "lsun-r", size),
        _ODIN,
    ),
    "isun": Known(
        "iSUN's photographs, resized to 32x32, in iSUN/<any>/<file>",
        "not stated",
        {"test": 8_925},
        (),
        ("iSUN",),
        "*",
        lambda folder, _, size: loose_source(folder, "isun", size),
        _ODIN,
    ),
    "patches": Known(
        "32x32 patches of scikit-image's photographs and textures",
        "mostly CC0 (scikit-image's data/README.txt)",
        {"test": 1_626},
        (),
        (),
        "",
        lambda _, __, size: outside.patch_source(size),
    ),
    "uniform-noise": Known(
        "uniform noise, every pixel by itself",
        "none needed",
        {"test": outside.N_NOISE},
        (),
        (),
        "",
        lambda _, __, size: outside.noise_source("uniform-noise", size),
    ),
    "gaussian-noise": Known(
        "Gaussian noise around grey, every pixel by itself",
        "none needed",
        {"test": outside.N_NOISE},
        (),
        (),
        "",
        lambda _, __, size: outside.noise_source("gaussian-noise", size),
    ),
}


def how_to_get(name: str) -> str:
    """What to do where a registered data set is not there."""
    return KNOWN[name].by_hand or f"intro-pipe datasets --download {name}"


def data_root_path(data_root: str | Path | None = None) -> Path:
    """Where data sets lie: as given, else ``$INTRO_PIPE_DATA``, else ``~/.cache/intro-pipe/data``.

    The path is absolute; nothing is made there.
    """
    given = data_root or os.environ.get("INTRO_PIPE_DATA") or "~/.cache/intro-pipe/data"
    return spelled_out(given).absolute()


def folder_of(name: str, root: Path) -> Path | None:
    """Where a registered data set lies; ``None`` if nowhere, the root if it needs no place."""
    known = KNOWN[name]
    if not known.folders:
        return root
    places = (root / folder for folder in known.folders)  # an absolute folder replaces the root
    return next((place for place in places if any(place.glob(known.marker))), None)
