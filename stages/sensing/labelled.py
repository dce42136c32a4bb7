"""All images and labels of a data set, and the normalisation of its images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.terminal import counted
from stages.data.flips import Flips
from stages.data.source import ImageSource
from stages.errors import InputError
from stages.sensing.card import CIFAR10_NORMALISATION, Normalisation
from stages.sensing.image_array import HELD_SHARE, image_array

READ_ROWS, READ_BYTES = 5_000, 64 * 2**20
"""Images that are read at a time: at most as many, of at most this size together."""

COUNTED_ROWS = 1_000
"""Images whose pixels are counted at a time."""


class Openable(Protocol):
    """Something that opens a source, such as ``stages.data.source.SourceSpec``."""

    def open(self) -> ImageSource:
        """Open the source."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The readable, labelled rows of a source.

    Attributes:
        images: ``[n, H, W, 3]`` uint8; in the memory of the device or of the host, or in a file
            that is mapped into memory. `take` reads rows of it.
        labels: ``[n]`` int64.
        rows: ``[n]`` int64, position of each in the source, ascending.
        n_left_out: number of rows that could not be read or have no label.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    n_left_out: int

    def to(self, device: str) -> "LabelledImages":
        """A copy on ``device``; the images remain where they are if they do not fit there."""
        images = self.images.to(device) if _fit_on(device, self.images.nbytes) else self.images
        return LabelledImages(images, self.labels.to(device), self.rows.to(device), self.n_left_out)

    def flipped(self, flips: Flips, source: ImageSource) -> "LabelledImages":
        """The same images with flipped labels; the flips are those of all rows of the source."""
        rows, labels = self.rows.numpy(), np.full(source.n_rows, -1, np.int64)
        labels[rows] = self.labels.numpy()
        found = flips.flipped(labels, source.n_classes)[rows]
        return replace(self, labels=torch.from_numpy(found))

    def take(self, rows: Tensor) -> Tensor:
        """The images at some indexes, ``[m, H, W, 3]`` uint8, on the device of the labels."""
        return self.images[rows.to(self.images.device)].to(self.labels.device)


def _fit_on(device: str, n_bytes: int) -> bool:
    """Whether images may be copied to a device; on the CPU they stay where they are."""
    kind = torch.device(device)
    return kind.type != "cuda" or n_bytes <= HELD_SHARE * torch.cuda.mem_get_info(kind)[0]


def read_labelled(
    source: ImageSource,
    tick: Callable[[int], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    samples: frozenset[str] | None = None,
) -> LabelledImages:
    """Read every readable, labelled row of ``source``, into memory or a scratch file.

    Args:
        source: the images.
        tick: called with the number of rows of each block that was read.
        note: called with a line if the images are kept in a scratch file, see `image_array`.
        samples: ids of the rows to keep; ``None`` for all.

    Raises:
        InputError: there is no such row, a label is outside the classes, or the source lacks some
            of ``samples``.
        ResourceError: there is no room for the images.
    """
    height, width = source.image_size
    shape, what = (source.n_rows, height, width, 3), f"{source.name}-{source.split}"
    images = image_array(shape, what, note)
    labels, places, n_chosen = [], [], 0
    n_usable, step = 0, max(1, min(READ_ROWS, READ_BYTES // (height * width * 3)))
    for start in range(0, source.n_rows, step):
        rows = source.read(start, min(start + step, source.n_rows))
        label = np.asarray(rows.columns["label"], dtype=np.int64)
        usable = label >= 0
        usable[list(rows.failed)] = False
        if samples is not None:
            is_chosen = np.array([str(each) in samples for each in rows.columns["sample_id"]])
            n_chosen += int(is_chosen.sum())
            usable &= is_chosen
        labels.append(label[usable])
        places.append(start + np.flatnonzero(usable))
        images[n_usable : n_usable + len(labels[-1])] = rows.images[usable]
        n_usable += len(labels[-1])
        tick(len(label))
    if samples is not None and n_chosen < len(samples):
        raise InputError(
            f"--samples: expected {counted(len(samples), 'sample')} of {source.name}-{source.split}"
            f", found {n_chosen:,} of them; its ids look like {sample_id(source, 0)!r}"
        )
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
        torch.from_numpy(images[:n_usable]),
        torch.from_numpy(label),
        torch.from_numpy(np.concatenate(places)),
        (source.n_rows if samples is None else n_chosen) - n_usable,
    )


def joined(data: LabelledImages, added: LabelledImages, what: str) -> LabelledImages:
    """The images of ``data``, then those of ``added``; ``what`` names them in messages.

    Raises:
        ResourceError: there is no room for the images.
    """
    n_rows = len(data.labels)
    shape = (n_rows + len(added.labels), *data.images.shape[1:])
    images = torch.from_numpy(image_array(shape, what, lambda _: None))
    images[:n_rows] = data.images
    images[n_rows:] = added.images
    labels, rows = (
        torch.cat([getattr(each, name) for each in (data, added)]) for name in ("labels", "rows")
    )
    return LabelledImages(images, labels, rows, data.n_left_out)


def sample_id(source: ImageSource, row: int) -> str:
    """The name of a row of ``source``."""
    return str(source.read(row, row + 1).columns["sample_id"][0])


def normalisation(
    images: Tensor, family: str, rows: Tensor | None = None
) -> tuple[Normalisation, str]:
    """Normalisation of the pixels, and its origin in words.

    CIFAR-10's published constants for its family; for others computed exactly from ``images`` and
    rounded to six digits.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        family: family of the source.
        rows: indexes of the images that count; ``None`` for all.
    """
    if family == "cifar10" or family.startswith("cifar10-"):
        return CIFAR10_NORMALISATION, "CIFAR-10's constants"
    means, stds = [], []
    levels = np.arange(256) / 255
    for counts in _levels_of(images, rows):
        shares = counts / counts.sum()
        mean = float(shares @ levels)
        variance = float(shares @ (levels - mean) ** 2)
        means.append(round(mean, 6))
        stds.append(round(max(variance**0.5, 1 / 255), 6))  # a constant channel stays finite
    return Normalisation(tuple(means), tuple(stds)), "training images"


def _levels_of(images: Tensor, rows: Tensor | None) -> NDArray[np.int64]:
    """How many pixels of each channel have each level, ``[3, 256]``; reads blocks of images."""
    counts = np.zeros((3, 256), np.int64)
    blocks = torch.split(images if rows is None else rows, COUNTED_ROWS)
    for block in blocks:
        pixels = block if rows is None else images[block]
        for channel in range(3):
            levels = pixels[..., channel].flatten()
            counts[channel] += torch.bincount(levels, minlength=256).cpu().numpy()
    return counts
