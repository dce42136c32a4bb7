"""Augmentation of batches on the device, with random numbers drawn once per epoch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.data.augmenting import CROP_PAD
from stages.sensing.train_params import Augmentation


@dataclass(frozen=True, slots=True)
class EpochDraws:
    """The random numbers of one epoch.

    Attributes:
        epoch: the epoch, counted from 0.
        order: ``[n]`` int64, a permutation of the rows.
        flip: ``[n]`` bool, for each position in the order.
        shift: ``[n, 2]`` int64 in ``[0, 2 CROP_PAD]``, rows then columns.
    """

    epoch: int
    order: Tensor
    flip: Tensor
    shift: Tensor

    def to(self, device: str) -> "EpochDraws":
        """A copy on ``device``."""
        moved = (each.to(device) for each in (self.order, self.flip, self.shift))
        return EpochDraws(self.epoch, *moved)


def epoch_draws(n_rows: int, seed: int, epoch: int) -> EpochDraws:
    """Draw the random numbers for (seed, epoch); they do not depend on the batch size."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(n_rows)
    flip = generator.random(n_rows) < 0.5
    shift = generator.integers(0, 2 * CROP_PAD + 1, size=(n_rows, 2))
    drawn = (torch.from_numpy(each) for each in (order, flip, shift))
    return EpochDraws(epoch, *drawn)


def augmented(images: Tensor, flip: Tensor, shift: Tensor, how: Augmentation) -> Tensor:
    """Apply random horizontal flips and, for ``crop_flip``, random crops to a batch.

    Args:
        images: ``[n, H, W, 3]`` uint8.
        flip: ``[n]`` bool.
        shift: ``[n, 2]``, where each crop starts in the padded image.
        how: ``none`` returns the images unchanged.

    Returns:
        ``[n, H, W, 3]`` uint8.
    """
    if how == "none":
        return images
    if how == "crop_flip":
        images = _cropped(images, shift)
    return torch.where(flip[:, None, None, None], images.flip(2), images)


def _cropped(images: Tensor, shift: Tensor) -> Tensor:
    n, height, width, _ = images.shape
    padded = functional.pad(images, (0, 0, CROP_PAD, CROP_PAD, CROP_PAD, CROP_PAD))
    rows = shift[:, 0, None] + torch.arange(height, device=images.device)
    columns = shift[:, 1, None] + torch.arange(width, device=images.device)
    index = torch.arange(n, device=images.device)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
