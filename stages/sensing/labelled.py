"""A whole data set in memory: images, labels, and what the network is fed of them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stages.data.source import ImageSource
from stages.errors import InputError
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD

READ_ROWS = 5_000


class Openable(Protocol):
    """What travels in place of a source, such as ``stages.data.source.SourceSpec``."""

    def open(self) -> ImageSource:
        """The source."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The readable, labelled rows of a source.

    Attributes:
        images: ``[n, H, W, 3]`` uint8.
        labels: ``[n]`` int64.
        rows: ``[n]`` int64, where each stands in the source; ascending.
        n_left_out: rows that could not be read or have no label.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    n_left_out: int

    def to(self, device: str) -> "LabelledImages":
        """The same on ``device``."""
        return LabelledImages(
            self.images.to(device), self.labels.to(device), self.rows.to(device), self.n_left_out
        )


def read_labelled(source: ImageSource) -> LabelledImages:
    """Every readable, labelled row of ``source``, on the CPU.

    Raises:
        InputError: no such row, or a label outside the classes.
    """
    images, labels, places = [], [], []
    for start in range(0, source.n_rows, READ_ROWS):
        rows = source.read(start, min(start + READ_ROWS, source.n_rows))
        label = np.asarray(rows.columns["label"], dtype=np.int64)
        usable = label >= 0
        usable[list(rows.failed)] = False
        images.append(rows.images[usable])
        labels.append(label[usable])
        places.append(start + np.flatnonzero(usable))
    n_usable = sum(len(part) for part in labels)
    if not n_usable:
        raise InputError(
            f"{source.name}-{source.split}: none of {source.n_rows} rows is readable and labelled; "
            "training needs labelled images"
        )
    label = np.concatenate(labels)
    if label.max() >= source.n_classes:
        raise InputError(
            f"{source.name}-{source.split}: label {label.max()} found, expected 0 to "
            f"{source.n_classes - 1} ({source.n_classes} classes); mend the labels"
        )
    return LabelledImages(
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(label),
        torch.from_numpy(np.concatenate(places)),
        source.n_rows - n_usable,
    )


def normalisation(images: Tensor, family: str) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation of pixels in [0, 1] for each channel, and where they are from.

    CIFAR-10's published constants for its family; else computed over ``images``, exactly, and
    rounded to six digits.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        family: of the source.
    """
    if family == "cifar10" or family.startswith("cifar10-"):
        return CIFAR10_MEAN, CIFAR10_STD, "CIFAR-10's constants"
    means, stds = [], []
    levels = np.arange(256) / 255
    for channel in range(3):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).cpu().numpy()
        shares = counts / counts.sum()
        mean = float(shares @ levels)
        variance = float(shares @ (levels - mean) ** 2)
        means.append(round(mean, 6))
        stds.append(round(max(variance**0.5, 1 / 255), 6))  # a constant channel stays finite
    return tuple(means), tuple(stds), "training images"
