"""What a training asks of a method: images to add, the views of a batch, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.sensing.card import ModelCard
from stages.sensing.labelled import LabelledImages

Views = tuple[Tensor, ...]
"""One tensor of the images of a batch for each view; the first is that whose accuracy is shown."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of training images.

    Attributes:
        images: ``[n, H, W, 3]`` uint8, flipped and cropped.
        labels: ``[n]`` int64.
        key: seed, epoch and first position in its order; the key of the random numbers of the
            batch, which must not depend on anything else.
        logits: maps images ``[n, H, W, 3]`` float32 in [0, 255] to the logits of the network as it
            is, in eval mode; differentiable with respect to the images.
    """

    images: Tensor
    labels: Tensor
    key: tuple[int, int, int]
    logits: Callable[[Tensor], Tensor]


def _none_added(data: LabelledImages, rows: Tensor) -> LabelledImages | None:
    del data, rows
    return None


def _the_images(batch: Batch) -> Views:
    return (batch.images,)


def cross_entropy(outputs: Views, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of all views; ``smoothing`` is that of ``torch.nn.CrossEntropyLoss``."""
    logits, repeated = torch.cat(outputs), labels.repeat(len(outputs))
    return functional.cross_entropy(logits, repeated, label_smoothing=smoothing)


def _the_network(network: nn.Module, card: ModelCard) -> nn.Module:
    del card
    return network


@dataclass(frozen=True, slots=True)
class Method:
    """A training method, by default the plain one.

    Attributes:
        added: maps the training images, and the indexes of those that are trained on at any time,
            to images that are trained on too. Each of these has the row of the image that it was
            made from, and is held out with it. Called once, before the first epoch or when a
            training is resumed; it must then return the same images.
        views: maps a batch to the inputs that go through the network together: for each view
            ``[n, H, W, 3]``, uint8 or float32, in [0, 255].
        loss: maps the outputs for each view, ``[n, N]`` float32, and the labels ``[n]`` to the mean
            loss of the batch.
        trained: maps the network and its card to the module that is trained, whose outputs begin
            with the logits; random weights come from torch's generator.
    """

    added: Callable[[LabelledImages, Tensor], LabelledImages | None] = _none_added
    views: Callable[[Batch], Views] = _the_images
    loss: Callable[[Views, Tensor], Tensor] = cross_entropy
    trained: Callable[[nn.Module, ModelCard], nn.Module] = _the_network
