"""The training methods and their parameters, without the libraries that run them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from stages.data.corruptions.names import CURE, SIDES
from stages.errors import InputError

Attack = Literal["i-fgsm", "pgd"]


@dataclass(frozen=True, slots=True)
class Plain:
    """The cross entropy of the training images, and nothing else.

    Every method has these members:

    Attributes:
        name: name of the method.
        is_part_trainable: whether it can train the last layer alone; it cannot if it needs the
            images of a batch, whose features are otherwise computed once.
    """

    name: Literal["plain"] = "plain"
    is_part_trainable: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Noise:
    """Distorted copies of some training images are added (paper, appendix C.2.3).

    The distortions are the six of CIFAR-10-CURE, each at a random one of its five levels.

    Attributes:
        per_distortion: number of training images, drawn at random, to which each is applied.
    """

    name: Literal["noise"] = "noise"
    per_distortion: int = 500
    is_part_trainable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.per_distortion < 1:
            raise InputError(f"per distortion {self.per_distortion}: expected 1 or more")


@dataclass(frozen=True, slots=True)
class Adversarial:
    """Images that were attacked to raise the cross entropy are added (paper, Table 4).

    Attributes:
        attack: ``i-fgsm`` attacks a trained model, once; ``pgd`` the network in training, in every
            batch.
        epsilon: largest change of a pixel in [0, 1].
        step: size of each of the ``steps``; the paper's.
        steps: number of steps.
    """

    name: Literal["adversarial"] = "adversarial"
    attack: Attack = "i-fgsm"
    epsilon: float = 8 / 255
    step: float = 0.01
    steps: int = 10

    def __post_init__(self) -> None:
        if self.attack not in get_args(Attack):
            raise InputError(
                f"attack {self.attack!r}: expected one of {', '.join(get_args(Attack))}"
            )
        if not (0 <= self.epsilon <= 1 and 0 < self.step <= 1 and self.steps >= 1):
            raise InputError(
                "adversarial: expected epsilon from 0 to 1, a step above 0 and up to 1, and at "
                f"least 1 step, found {self.epsilon:g}, {self.step:g} and {self.steps}"
            )

    @property
    def is_part_trainable(self) -> bool:
        """Whether the images are the same in every epoch."""
        return self.attack == "i-fgsm"


@dataclass(frozen=True, slots=True)
class AugMix:
    """AugMix with the Jensen-Shannon consistency loss (Hendrycks et al., ICLR 2020).

    Attributes:
        mix_width: number of chains of operations that are mixed.
        mix_depth: number of operations in a chain; ``None`` draws 1 to 3.
        mix_severity: upper bound of the level of an operation, of 10.
        jsd_weight: weight of the divergence between an image and its two mixtures in the loss.
    """

    name: Literal["augmix"] = "augmix"
    mix_width: int = 3
    mix_depth: int | None = None
    mix_severity: float = 3.0
    jsd_weight: float = 12.0
    is_part_trainable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mix_width < 1 or (self.mix_depth is not None and self.mix_depth < 1):
            raise InputError(
                f"mix width {self.mix_width} and depth {self.mix_depth}: expected 1 or more"
            )
        if not 0.1 < self.mix_severity <= 10:
            raise InputError(f"mix severity {self.mix_severity}: expected more than .1, up to 10")
        if not 0 <= self.jsd_weight < math.inf:
            raise InputError(f"jsd weight {self.jsd_weight}: expected a finite number, 0 or more")


@dataclass(frozen=True, slots=True)
class SimClr:
    """Two views of an image have similar features; labels are not needed (Chen et al. 2020).

    The defaults are those of main.py and model.py of leftthomas/SimCLR.

    Attributes:
        nt_xent_temperature: temperature of the loss.
        projection: widths of the hidden layer and of the output of the projection head.
    """

    name: Literal["simclr"] = "simclr"
    nt_xent_temperature: float = 0.5
    projection: tuple[int, ...] = (512, 128)
    is_part_trainable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.nt_xent_temperature < math.inf:
            raise InputError(
                f"nt-xent temperature {self.nt_xent_temperature}: expected a finite number above 0"
            )
        if len(self.projection) != 2 or min(self.projection) < 1:
            raise InputError(f"projection {self.projection}: expected two widths, such as 512,128")


MethodParams = Plain | Adversarial | Noise | AugMix | SimClr
METHODS: Mapping[str, MethodParams] = {
    each.name: each for each in (Plain(), Adversarial(), Noise(), AugMix(), SimClr())
}
"""Every method by its name, with the parameters of its publication."""

PLAIN = Plain()


def n_added(method: MethodParams, n_rows: int) -> int:
    """Number of images that a method adds to ``n_rows`` training images; views are not counted."""
    if isinstance(method, Noise):
        return len(CURE) * method.per_distortion
    return n_rows if isinstance(method, Adversarial) and method.attack == "i-fgsm" else 0


def method_options() -> tuple[str, ...]:
    """Names of all parameters of all methods, each once."""
    names = (field.name for each in METHODS.values() for field in dataclasses.fields(each))
    return tuple(dict.fromkeys(name for name in names if name != "name"))


def method_from(name: str, options: Mapping[str, Any]) -> MethodParams:  # Any: their values
    """The method of that name; parameters that are ``None`` keep the value of its publication.

    Raises:
        InputError: a parameter belongs to another method, or a value is invalid.
    """
    method = METHODS[name]
    given = {option: value for option, value in options.items() if value is not None}
    known = {field.name for field in dataclasses.fields(method)}
    for option in given.keys() - known:
        owners = [each for each, other in METHODS.items() if hasattr(other, option)]
        raise InputError(
            f"--{option.replace('_', '-')} has no effect with --method {name}: it is an option of "
            f"--method {' or '.join(owners)}"
        )
    return dataclasses.replace(method, **given)


def check_images(method: MethodParams, n_rows: int, size: Sequence[int]) -> None:
    """Check that a method can be applied to training images.

    Args:
        method: the method.
        n_rows: number of training images.
        size: their height and width in pixels.

    Raises:
        InputError: there are fewer images than are distorted, or they are not of the size for which
            the distortions have constants.
    """
    if not isinstance(method, Noise):
        return
    side = SIDES["cure"]
    if tuple(size) != (side, side):
        raise InputError(
            f"--method noise: the distortions have constants for {side}x{side} pixels, found "
            f"{size[0]}x{size[1]}; give --image-size {side}"
        )
    if n_rows < (n_each := method.per_distortion):
        raise InputError(
            f"--method noise: --per-distortion {n_each} needs as many training images, found "
            f"{n_rows}; give --per-distortion {n_rows} or fewer"
        )


def in_words(method: MethodParams) -> str:
    """The method and its parameters on one line.

    >>> in_words(Noise())
    'noise (per_distortion 500)'
    >>> in_words(SimClr())
    'simclr (nt_xent_temperature 0.5, projection 512/128)'
    """
    facts = dataclasses.asdict(method)
    name = facts.pop("name")
    shown = ", ".join(
        f"{key} {value_in_words(value)}" for key, value in facts.items() if value is not None
    )
    return f"{name} ({shown})" if shown else name


def value_in_words(value: object) -> str:
    """The value of a parameter.

    >>> value_in_words((0.3, 0.6)), value_in_words(1e-6)
    ('0.3/0.6', '1e-06')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "/".join(map(value_in_words, value)) or "none"
    return str(value)
