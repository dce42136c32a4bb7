"""The method adversarial: also train on images that were changed to raise the loss.

``i-fgsm`` attacks a trained network once, before the first epoch (Kurakin et al. 2017); ``pgd``
attacks the network in training, in eval mode, in every batch (Madry et al. 2018). Pixels are in
[0, 255] here, and so are steps, whatever the normalisation of the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.progress import Progress
from stages.sensing.attacked import Attacked
from stages.sensing.card import Precision
from stages.sensing.input_gradient import input_gradient
from stages.sensing.labelled import LabelledImages
from stages.sensing.methods.method import Batch, Method, Views
from stages.sensing.methods.method_params import Adversarial
from stages.sensing.model import load_sensing
from stages.sensing.probe import N_ROWS

ATTACK_BATCH = 256
"""Images per batch of the attack."""

Gradient = Callable[[Tensor], Tensor]
"""Maps images ``[n, H, W, 3]`` float32 to values with the signs of the gradient of the loss."""


def adversarial(
    params: Adversarial, attacked: Attacked | None, device: str, precision: Precision
) -> Method:
    """The method; ``attacked`` is the model for ``i-fgsm``."""
    if attacked is None:
        return Method(views=partial(attacked_views, params=params))
    return Method(
        added=partial(
            attacked_images, params=params, attacked=attacked, device=device, precision=precision
        )
    )


def attacked_images(
    data: LabelledImages,
    rows: Tensor,
    *,
    params: Adversarial,
    attacked: Attacked,
    device: str,
    precision: Precision,
) -> LabelledImages:
    """An adversarial copy of each image, in whole grey levels.

    Args:
        data: the training images.
        rows: indexes of those that are attacked.
        params: the parameters.
        attacked: the model that is attacked.
        device: device of that model.
        precision: its precision.
    """
    some = data.take(rows[:N_ROWS])
    sensing = load_sensing(attacked.card, attacked.weights, device, precision, images=some)
    images = torch.empty((len(rows), *data.images.shape[1:]), dtype=torch.uint8)
    with Progress("attack training images", len(rows)) as progress:
        for start in range(0, len(rows), ATTACK_BATCH):
            index = rows[start : start + ATTACK_BATCH]
            clean, labels = data.take(index).to(device), data.labels[index].to(device)

            def loss(_: Tensor, logits: Tensor, labels: Tensor = labels) -> Tensor:
                return functional.cross_entropy(logits, labels, reduction="none")

            moved = ascended(clean, partial(input_gradient, sensing, loss=loss), params)
            images[start : start + len(index)] = moved.round().to(torch.uint8).cpu()
            progress.advance(len(index))
    return LabelledImages(images, data.labels[rows], data.rows[rows], 0)


def ascended(
    images: Tensor, gradient: Gradient, params: Adversarial, start: Tensor | None = None
) -> Tensor:
    """Images after steps along the signs of a gradient; ``[n, H, W, 3]`` float32.

    After every step, pixels are within ``params.epsilon`` of the images and in [0, 255]. Where the
    gradient is NaN they stay.

    Args:
        images: ``[n, H, W, 3]``.
        gradient: signs to follow.
        params: the parameters.
        start: what is added before the first step.
    """
    clean = images.to(torch.float32)
    radius, step = 255 * params.epsilon, 255 * params.step
    low, high = (clean - radius).clamp(min=0), (clean + radius).clamp(max=255)
    moved = clean if start is None else (clean + start).clamp(low, high)
    for _ in range(params.steps):
        signs = gradient(moved).sign().nan_to_num(0)
        moved = (moved + step * signs).clamp(low, high)
    return moved


def attacked_views(batch: Batch, *, params: Adversarial) -> Views:
    """The images of a batch, and adversarial copies by PGD on the current network."""
    images = batch.images.to(torch.float32)
    generator = np.random.default_rng([*batch.key, zlib.crc32(b"pgd")])
    share = generator.uniform(-1, 1, images.shape).astype(np.float32)
    start = 255 * params.epsilon * torch.from_numpy(share).to(images.device)

    def gradient(moved: Tensor) -> Tensor:
        moved = moved.detach().requires_grad_(True)
        loss = functional.cross_entropy(batch.logits(moved), batch.labels, reduction="sum")
        return torch.autograd.grad(loss, moved)[0]

    return images, ascended(images, gradient, params, start)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Use eval mode without gradients of weights in the block; restore both afterwards."""
    was_training = {part: part.training for part in network.modules()}
    needed_gradients = [each for each in network.parameters() if each.requires_grad]
    network.eval()
    for parameter in needed_gradients:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for part, training in was_training.items():
            part.training = training
        for parameter in needed_gradients:
            parameter.requires_grad_(True)
