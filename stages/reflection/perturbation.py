"""Perturbation of images along input gradients before their features are extracted: ODIN and PGD.

Each is a variant of an extraction with its own feature set. Pixels are in [0, 255] here and are
then normalised by the network, so a step of 1/255 is one grey level whatever the network's input
range. Only the signs of gradients are used; normalisation does not change them, because its scale
is positive. Images are independent, so a batch is perturbed as its images would be one by one.
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
from stages.sensing.input_gradient import input_gradient
from stages.sensing.model import Sensing

LEVELS = 255

Move = Callable[[Tensor], Tensor]
"""Maps images ``[n, H, W, 3]`` in [0, 255] to perturbed ones, float32, on the same device."""

Judge = Callable[[Tensor, Tensor], Tensor]
"""Maps features and logits of f to the attacked logits; differentiable."""

Toward = Literal["uniform", "confident"]
Rounding = Literal["exact", "code"]


class Perturbation(Protocol):
    """A way to perturb images; picklable, since it is sent to workers."""

    tag: ClassVar[str]
    """Suffix in the names of feature sets."""

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the perturbed images."""

    def of(self, sensing: Sensing) -> Move:
        """The perturbation for a network, on its device."""


class Target(Protocol):
    """What an attack targets instead of f itself."""

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Everything that determines its logits."""

    def load(self, device: torch.device) -> Judge:
        """Load it onto a device."""


@dataclass(frozen=True, slots=True)
class Odin:
    """``x - ε s``, where ``s`` is the sign of the gradient of ``CE(z / T, argmax z)``, 1 at 0.

    It makes f more confident, more so for in-distribution images (Liang et al. 2018). The result is
    neither clipped nor rounded, as in the paper's code base.

    Attributes:
        epsilon: step ε, for pixels in [0, 1].
        temperature: divisor of the logits in the loss.
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
        """JSON form, as stored in a plan."""
        return {"kind": self.tag, **asdict(self)}

    def of(self, sensing: Sensing) -> Move:
        """The perturbation for a network, on its device."""

        def loss(features: Tensor, logits: Tensor) -> Tensor:
            del features
            z = logits / self.temperature
            return z.logsumexp(dim=1) - z.amax(dim=1)

        def move(images: Tensor) -> Tensor:
            ascent = input_gradient(sensing, images, loss)
            signs = torch.where(ascent.isnan(), ascent, torch.where(ascent >= 0, 1.0, -1.0))
            return images.to(torch.float32) - LEVELS * self.epsilon * signs

        return move


@dataclass(frozen=True, slots=True)
class Pgd:
    """Projected gradient descent in a box of ε around each pixel; the last iterate is used.

    In-distribution images move ``uniform``: down ``logsumexp z - mean z``, the cross entropy to the
    uniform distribution. Others move ``confident``: down the entropy of ``softmax z``. If ε and the
    step are whole grey levels, pixels stay at whole levels: what is added is truncated towards 0.

    The paper's code base computes what is added as ``(x + δ/255 - x) * 255`` in float32 before it
    truncates. That often falls just short of a whole number, so steps lose a level and the attack
    is weaker for ε above 1/255. ``rounding="code"`` does the same, for comparison.

    Attributes:
        toward: direction of the attack.
        epsilon: largest change of a pixel in [0, 1].
        step: size of each of the ``steps``.
        steps: number of steps.
        seed: seed of the start, which is uniform in the box and truncated to whole levels; for
            ε = 1/255 it is the image itself.
        target: head whose logits are attacked; those of f if ``None``.
        rounding: ``exact``, or ``code`` for that of the paper's code base.
    """

    toward: Toward
    epsilon: float = 1 / LEVELS
    step: float = 1 / LEVELS
    steps: int = 10
    seed: int = 0
    target: Target | None = None
    rounding: Rounding = "exact"

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
        """JSON form, as stored in a plan."""
        return {
            "kind": self.tag,
            "toward": self.toward,
            "epsilon": self.epsilon,
            "step": self.step,
            "steps": self.steps,
            "seed": self.seed,
            "target": None if self.target is None else self.target.to_dict(),
            **({} if self.rounding == "exact" else {"rounding": self.rounding}),
        }

    def of(self, sensing: Sensing) -> Move:
        """The perturbation for a network, on its device."""
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
            if self.rounding == "code":
                added = self._within(clean, added)
            for _ in range(self.steps):
                gradient = input_gradient(sensing, clean + added, loss)
                signs = torch.where(gradient.isnan(), gradient, gradient.sign())
                added = whole(added - step * signs).clamp(-epsilon, epsilon)
                added = self._within(clean, added)
            return clean + added

        return move

    def _within(self, clean: Tensor, added: Tensor) -> Tensor:
        """What is added if pixels stay in their range."""
        if self.rounding == "exact":
            return (clean + added).clamp(0, LEVELS) - clean
        x = clean / LEVELS
        return ((x + added / LEVELS).clamp(0, 1) - x) * LEVELS

    def _start(self, images: Tensor) -> Tensor:
        """Uniform in [-1, 1), seeded by each image's content, so independent of the batches."""
        values = images.cpu().numpy()
        seeds = [[self.seed, zlib.crc32(image.tobytes())] for image in values]
        drawn = [np.random.default_rng(seed).uniform(-1, 1, values.shape[1:]) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(images.device, torch.float32)


def _toward_uniform(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) - logits.mean(dim=1)


def _toward_confident(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
