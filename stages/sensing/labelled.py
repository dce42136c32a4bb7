"""A whole labelled data set in memory, and the normalisation of its images."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stages.data.source import ImageSource
from stages.errors import InputError
from stages.sensing.card import CIFAR10_NORMALISATION, Normalisation

READ_ROWS = 5_000


class Openable(Protocol):
    """Something that opens a source, such as ``stages.data.source.SourceSpec``."""

    def open(self) -> ImageSource:
        """Open the source."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The readable, labelled rows of a source.

    Attributes:
        images: ``[n, H, W, 3]`` uint8.
        labels: ``[n]`` int64.
        rows: ``[n]`` int64, position of each in the source, ascending.
        n_left_out: number of rows that could not be read or have no label.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    n_left_out: int

    def to(self, device: str) -> "LabelledImages":
        """A copy on ``device``."""
        return LabelledImages(
            self.images.to(device), self.labels.to(device), self.rows.to(device), self.n_left_out
        )


def read_labelled(source: ImageSource) -> LabelledImages:
    """Read every readable, labelled row of ``source`` into host memory.

    Raises:
        InputError: there is no such row, or a label is outside the classes.
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
            f"training needs labelled images{source.how_to_label and '; ' + source.how_to_label}"
        )
    label = np.concatenate(labels)
    if label.max() >= source.n_classes:
        raise InputError(
            f"{source.name}-{source.split}: label {label.max()} found, expected 0 to "
            f"{source.n_classes - 1} ({source.n_classes} classes); correct the labels"
        )
    return LabelledImages(
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(label),
        torch.from_numpy(np.concatenate(places)),
        source.n_rows - n_usable,
    )


def sample_id(source: ImageSource, row: int) -> str:
    """The name of a row of ``source``."""
    return str(source.read(row, row + 1).columns["sample_id"][0])


def normalisation(images: Tensor, family: str) -> tuple[Normalisation, str]:
    """Normalisation of the pixels, and its origin in words.

    CIFAR-10's published constants for its family; for others computed exactly from ``images`` and
    rounded to six digits.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        family: family of the source.
    """
    if family == "cifar10" or family.startswith("cifar10-"):
        return CIFAR10_NORMALISATION, "CIFAR-10's constants"
    means, stds = [], []
    levels = np.arange(256) / 255
    for channel in range(3):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).cpu().numpy()
        shares = counts / counts.sum()
        mean = float(shares @ levels)
        variance = float(shares @ (levels - mean) ** 2)
        means.append(round(mean, 6))
        stds.append(round(max(variance**0.5, 1 / 255), 6))  # a constant channel stays finite
    return Normalisation(tuple(means), tuple(stds)), "training images"
