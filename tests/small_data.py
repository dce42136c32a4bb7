"""Small real data for tests: digits as arrays and as image files, a network trained on them."""

from pathlib import Path

import numpy as np
from made import make_in
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore

CLASSES = ("zero", "one", "two")


def digits(n_rows: int, n_classes: int = 10) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first digits of scikit-learn's set with a label below ``n_classes``: 8x8 grey."""
    data = load_digits()
    keep = np.flatnonzero(data.target < n_classes)[:n_rows]
    images = np.round(data.images[keep] * 255 / 16).astype(np.uint8)
    return images, data.target[keep].astype(np.int64)


def write_npz(path: Path, n_rows: int, n_classes: int = 10) -> Path:
    images, labels = digits(n_rows, n_classes)
    np.savez(path, images=images, labels=labels)
    return path


def write_npz_set(folder: Path, n_train: int, n_test: int) -> Path:
    """A data set of two files, ``train.npz`` and ``test.npz``."""
    folder.mkdir(parents=True)
    images, labels = digits(n_train + n_test)
    np.savez(folder / "train.npz", images=images[:n_train], labels=labels[:n_train])
    np.savez(folder / "test.npz", images=images[n_train:], labels=labels[n_train:])
    return folder


def write_image_folder(folder: Path, n_rows: int) -> Path:
    """``train`` and ``test``, each with a folder of PNG files for every class."""
    images, labels = digits(n_rows, len(CLASSES))
    for split in ("train", "test"):
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / split / CLASSES[label] / f"{row:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((32, 32)).save(place)
    return folder


def train_small(store: FeatureStore, dataset: Path, *, name: str = "cnn2", seed: int = 0) -> None:
    """One epoch of the small network: enough to be a model, too little to be a good one."""
    stage = TrainSensing(dataset=str(dataset), preset="quick", name=name, epochs=1, seed=seed)
    make_in(store, stage)
