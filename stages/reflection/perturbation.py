"""Images moved along input gradients before their features are taken: ODIN and PGD.

Each is a variant of an extraction and has a feature set of its own. Pixels are in [0, 255] here and
go on to the network's own normalisation, so a step of 1/255 is one grey level whatever the network
is fed. Only signs of gradients are used, which the normalisation does not change: its scale is
positive. Images do not touch each other, so a batch moves as its images would one by one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from stages.errors import InputError
from stages.sensing.model import Sensing

LEVELS = 255

Move = Callable[[Tensor], Tensor]
"""Images ``[n, H, W, 3]`` with values in [0, 255] to moved ones, float32, on one device."""

Judge = Callable[[Tensor, Tensor], Tensor]
"""Features and logits of f to the logits that are attacked, differentiable."""

Toward = Literal["uniform", "confident"]


class Perturbation(Protocol):
    """A way to move images; what travels to workers."""

    tag: ClassVar[str]
    """What it is called in names of feature sets."""

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines where images end."""

    def of(self, sensing: Sensing) -> Move:
        """The move against a network on its device."""


class Target(Protocol):
    """What an attack looks through, where that is not f itself."""

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines its logits."""

    def load(self, device: torch.device) -> Judge:
        """It, on a device."""


@dataclass(frozen=True, slots=True)
class Odin:
    """``x - ε s``, ``s`` the sign of the gradient of ``CE(z / T, argmax z)`` and 1 where it is 0.

    It makes f surer, of in-distribution images more so (Liang et al. 2018). The result is neither
    clipped nor rounded, as in the paper's code base.

    Attributes:
        epsilon: of pixels in [0, 1].
        temperature: divides the logits in the loss.
    """

    epsilon: float = 0.0014
    temperature: float = 1000.0

    tag: ClassVar[str] = "odin"

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon <= 1 and self.temperature > 0):
            raise InputError(
                f"odin: expected epsilon from 0 to 1 and a positive temperature, found "
                f"{self.epsilon:g} and {self.temperature:g}"
            )

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """What the plan records."""
        return {"kind": self.tag, **asdict(self)}

    def of(self, sensing: Sensing) -> Move:
        """The move against a network."""

        def loss(features: Tensor, logits: Tensor) -> Tensor:
            del features
            z = logits / self.temperature
            return z.logsumexp(dim=1) - z.amax(dim=1)

        def move(images: Tensor) -> Tensor:
            ascent = input_gradient(sensing, images, loss)
            signs = torch.where(ascent >= 0, 1.0, -1.0)
            return images.to(torch.float32) - LEVELS * self.epsilon * signs

        return move


@dataclass(frozen=True, slots=True)
class Pgd:
    """Projected gradient descent in a box of ε around each pixel, the last iterate taken.

    In-distribution images go ``uniform``, down ``logsumexp z - mean z``, the cross entropy to the
    uniform distribution; others go ``confident``, down the entropy of ``softmax z``. Where ε and
    the step are whole grey levels the image stays in whole levels, as in the paper's code base:
    what it adds is cut to whole levels toward 0.

    Attributes:
        toward: where images are to go.
        epsilon: most that a pixel in [0, 1] changes.
        step: that each of ``steps`` goes.
        seed: of the start, uniform in the box, cut to whole levels: at ε = 1/255 that is the image.
        target: whose logits; those of f where there is none.
    """

    toward: Toward
    epsilon: float = 1 / LEVELS
    step: float = 1 / LEVELS
    steps: int = 10
    seed: int = 0
    target: Target | None = None

    tag: ClassVar[str] = "pgd"

    def __post_init__(self) -> None:
        if self.toward not in ("uniform", "confident"):
            raise InputError(f"pgd: expected toward uniform or confident, found {self.toward!r}")
        if not (0 < self.epsilon <= 1 and 0 < self.step <= 1 and self.steps >= 1):
            raise InputError(
                "pgd: expected epsilon and step above 0 and up to 1, and at least 1 step, found "
                f"{self.epsilon:g}, {self.step:g} and {self.steps}"
            )

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """What the plan records."""
        return {
            "kind": self.tag,
            "toward": self.toward,
            "epsilon": self.epsilon,
            "step": self.step,
            "steps": self.steps,
            "seed": self.seed,
            "target": None if self.target is None else self.target.to_dict(),
        }

    def of(self, sensing: Sensing) -> Move:
        """The move against a network."""
        epsilon, step = LEVELS * self.epsilon, LEVELS * self.step
        is_whole = all(abs(value - round(value)) < 1e-6 for value in (epsilon, step))
        if is_whole:
            epsilon, step = float(round(epsilon)), float(round(step))
        judge = None if self.target is None else self.target.load(sensing.mean.device)
        descend = _toward_uniform if self.toward == "uniform" else _toward_confident

        def loss(features: Tensor, logits: Tensor) -> Tensor:
            return descend(logits if judge is None else judge(features, logits))

        def whole(levels: Tensor) -> Tensor:
            return levels.trunc() if is_whole else levels

        def move(images: Tensor) -> Tensor:
            clean = images.to(torch.float32)
            added = whole(epsilon * self._start(images))
            for _ in range(self.steps):
                signs = input_gradient(sensing, clean + added, loss).sign()
                added = whole((added - step * signs).clamp(-epsilon, epsilon))
                added = (clean + added).clamp(0, LEVELS) - clean
            return clean + added

        return move

    def _start(self, images: Tensor) -> Tensor:
        """Uniform in [-1, 1), drawn for each image by its content: however batches are cut."""
        values = images.cpu().numpy()
        seeds = [[self.seed, zlib.crc32(image.tobytes())] for image in values]
        drawn = [np.random.default_rng(seed).uniform(-1, 1, values.shape[1:]) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(images.device, torch.float32)


def _toward_uniform(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) - logits.mean(dim=1)


def _toward_confident(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def input_gradient(
    sensing: Sensing, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Gradient of each image's loss to its normalised pixels, laid out as the images are.

    Its signs are those of the gradient to the pixels themselves.

    Args:
        sensing: in eval mode.
        images: ``[n, H, W, 3]``, values in [0, 255].
        loss: features ``[n, d]`` and logits ``[n, N]`` to a number for each image, ``[n]``.
    """
    pixels = ((images.to(torch.float32) - sensing.mean) * sensing.scale).permute(0, 3, 1, 2)
    with torch.enable_grad():
        pixels.requires_grad_(True)
        losses = loss(*sensing.vectors(pixels))
        (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return gradient.permute(0, 2, 3, 1)
