"""The forward pass of a worker that computes maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import InputError
from stages.explanation.layer_choice import combining, is_pooled
from stages.explanation.maps import maps_of
from stages.explanation.questions import Question
from stages.explanation.target_layer import TargetLayer
from stages.reflection.forward import Arrays, Forward
from stages.sensing.model import Sensing, normalised


@dataclass(kw_only=True)
class MapForward(Forward):
    """A network that writes the maps of images instead of their vectors.

    Attributes:
        target: the layer that maps are made of.
        questions: the maps of each image.
        in_closed_form: whether f is the mean of that layer's output.
    """

    target: TargetLayer
    questions: tuple[Question, ...]
    in_closed_form: bool

    def compute(self, out: Arrays, images: NDArray[np.uint8]) -> None:
        """Write maps, logits and VOICE numbers of images into ``out``, in one forward pass.

        The logits ``stored`` in ``out`` decide the probabilities, and ``asked`` the classes.
        """
        sensing = self.sensing
        pixels = normalised(self.on_device(images), sensing.mean, sensing.scale)
        combine, logits = combining(
            sensing, self.target, pixels, in_closed_form=self.in_closed_form
        )
        stored, asked = (torch.from_numpy(out[name]).to(logits) for name in ("stored", "asked"))
        with torch.no_grad():
            maps, numbers = maps_of(self.questions, stored, asked.long(), combine)
        out["maps"][...] = maps.cpu().numpy()
        out["logits"][...] = logits.cpu().numpy()
        if numbers is not None:
            out["voice"][...] = numbers.cpu().numpy()


def check_pooled(sensing: Sensing, layer: TargetLayer, images: Tensor) -> None:
    """Raise ``InputError`` if f is not the mean of a layer's output for these images."""
    pixels = normalised(images.to(sensing.mean.device), sensing.mean, sensing.scale)
    if not is_pooled(sensing, layer, pixels):
        raise InputError(
            f"model {sensing.card.name}: its features are not the mean of {layer.name} for the "
            "images of this run, as they were for noise"
        )
