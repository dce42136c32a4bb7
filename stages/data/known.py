"""The registered data sets: descriptions, locations, and how to open them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.data import cifar, corrupted, domains, idx, outside, svhn
from stages.data.corruptions.names import CORRUPTIONS
from stages.data.digits import digits_source
from stages.data.folder import ALL
from stages.data.loose import loose_source
from stages.data.resize import Resize
from stages.data.source import ReaderSource
from store.disk import spelled_out

DEFAULT_DATA_ROOT = "~/.cache/intro-pipe/data"


@dataclass(frozen=True, slots=True)
class Known:
    """A registered data set.

    Attributes:
        description: one line.
        licence: licence, as far as the publishers state one.
        n_rows: number of images per split.
        class_names: name of each label.
        folders: possible folders, relative to the data root or absolute; empty if it is installed.
        marker: pattern of files that show that a folder holds it.
        opener: makes the source from folder, split and how images are resized.
        by_hand: where to get it, if it cannot be downloaded.
    """

    description: str
    licence: str
    n_rows: Mapping[str, int]
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    marker: str
    opener: Callable[[Path, str, Resize], ReaderSource]
    by_hand: str = ""


def _office31(domain: str, n_rows: int) -> Known:
    """A domain of Office-31."""
    return Known(
        f"Office-31, photographs of 31 things in an office: {domain}",
        "none stated",
        {ALL: n_rows},
        domains.OFFICE31_NAMES,
        ("office31", "office-31", "Office-31", "domain_adaptation_images"),
        domain,
        lambda folder, _, resizing: domains.office31_source(folder, domain, resizing),
        "its archive is linked on people.eecs.berkeley.edu/~jhoffman/domainadapt; unpack it in "
        "office31/",
    )


_ODIN = "its archive is linked in the README of github.com/facebookresearch/odin"

KNOWN: Mapping[str, Known] = {
    "digits": Known(
        "scikit-learn's handwritten digits, 8x8 grey",
        "CC BY 4.0 (UCI, optical recognition of handwritten digits)",
        {"train": 1_297, "test": 500},
        idx.MNIST_NAMES,
        (),
        "",
        lambda _, split, resizing: digits_source(split, resizing),
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
        lambda folder, _, resizing: corrupted.corrupted_source(
            folder, "cifar10c", resizing, required=CORRUPTIONS
        ),
    ),
    "fashion-mnist": Known(
        "Fashion-MNIST, 28x28 grey pictures of clothes",
        "MIT",
        {"train": 60_000, "test": 10_000},
        idx.FASHION_NAMES,
        ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "*-images[-.]idx3-ubyte*",
        lambda folder, split, resizing: idx.idx_source(
            folder, "fashion-mnist", idx.FASHION_NAMES, split, resizing
        ),
    ),
    "mnist": Known(
        "MNIST, 28x28 grey handwritten digits",
        "CC BY-SA 3.0 as usually stated",
        {"train": 60_000, "test": 10_000},
        idx.MNIST_NAMES,
        ("mnist", "MNIST/raw"),
        "*-images[-.]idx3-ubyte*",
        lambda folder, split, resizing: idx.idx_source(
            folder, "mnist", idx.MNIST_NAMES, split, resizing
        ),
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
        "the first 1,000 test images of each class of SVHN, as in OOD benchmarks",
        "for non-commercial use",
        {"test": 10_000},
        idx.MNIST_NAMES,
        ("svhn", "SVHN"),
        svhn.MARKER,
        lambda folder, split, resizing: svhn.svhn_source(
            folder, split, resizing, name="svhn-10k", n_of_class=svhn.N_OF_CLASS
        ),
        "`intro-pipe datasets --download svhn` includes it",
    ),
    "textures": Known(
        "Describable Textures (DTD), photographs of 47 kinds",
        "for research",
        {"test": 5_640},
        (),
        ("dtd", "dtd/dtd"),
        "images",
        lambda folder, _, resizing: loose_source(folder / "images", "textures", resizing),
    ),
    "places365": Known(
        "10,000 test photographs of Places365, in places365/test_subset/<any>/<file>",
        "for non-commercial research",
        {"test": 10_000},
        (),
        ("places365",),
        "test_subset",
        lambda folder, _, resizing: loose_source(folder / "test_subset", "places365", resizing),
        "test images from places2.csail.mit.edu, 10,000 of them in places365/test_subset/<any>/",
    ),
    "lsun-c": Known(
        "LSUN's test photographs, 32x32 crops, in LSUN/<any>/<file>",
        "not stated",
        {"test": 10_000},
        (),
        ("LSUN", "LSUN_crop"),
        "*",
        lambda folder, _, resizing: loose_source(folder, "lsun-c", resizing),
        _ODIN,
    ),
    "lsun-r": Known(
        "LSUN's test photographs, resized to 32x32, in LSUN_resize/<any>/<file>",
        "not stated",
        {"test": 10_000},
        (),
        ("LSUN_resize",),
        "*",
        lambda folder, _, resizing: loose_source(folder, "lsun-r", resizing),
        _ODIN,
    ),
    "isun": Known(
        "iSUN's photographs, resized to 32x32, in iSUN/<any>/<file>",
        "not stated",
        {"test": 8_925},
        (),
        ("iSUN",),
        "*",
        lambda folder, _, resizing: loose_source(folder, "isun", resizing),
        _ODIN,
    ),
    "office31-amazon": _office31("amazon", 2_817),
    "office31-dslr": _office31("dslr", 498),
    "office31-webcam": _office31("webcam", 795),
    "visda2017": Known(
        "VisDA-2017, synthetic images (train) and photographs (validation) of 12 classes",
        "for research",
        {"train": 152_397, "validation": 55_388},
        domains.VISDA_NAMES,
        ("visda2017", "visda17", "visda-2017", "VisDA-2017", "VisDA2017"),
        "validation",
        domains.visda_source,
        "train.tar and validation.tar of its classification task are linked in "
        "github.com/VisionLearningGroup/taskcv-2017-public; unpack them in visda2017/",
    ),
    "patches": Known(
        "32x32 patches of scikit-image's photographs and textures",
        "mostly CC0 (scikit-image's data/README.txt)",
        {"test": 1_626},
        (),
        (),
        "",
        lambda _, __, resizing: outside.patch_source(resizing),
    ),
    "uniform-noise": Known(
        "uniform noise, independent for every pixel",
        "none needed",
        {"test": outside.N_NOISE},
        (),
        (),
        "",
        lambda _, __, resizing: outside.noise_source("uniform-noise", resizing),
    ),
    "gaussian-noise": Known(
        "Gaussian noise around grey, independent for every pixel",
        "none needed",
        {"test": outside.N_NOISE},
        (),
        (),
        "",
        lambda _, __, resizing: outside.noise_source("gaussian-noise", resizing),
    ),
}


def how_to_get(name: str) -> str:
    """How to get a registered data set that is missing."""
    return KNOWN[name].by_hand or f"intro-pipe datasets --download {name}"


def data_root_path(data_root: str | Path | None = None) -> Path:
    """Folder of the data sets: as given, or ``$INTRO_PIPE_DATA``, or ``~/.cache/intro-pipe/data``.

    The path is absolute; the folder is not created.
    """
    given = data_root or os.environ.get("INTRO_PIPE_DATA") or DEFAULT_DATA_ROOT
    return spelled_out(given).absolute()


def folder_of(name: str, root: Path) -> Path | None:
    """Folder of a registered data set; ``None`` if missing, the root if it needs no folder."""
    known = KNOWN[name]
    if not known.folders:
        return root
    places = (root / folder for folder in known.folders)  # an absolute folder replaces the root
    return next((place for place in places if any(place.glob(known.marker))), None)
