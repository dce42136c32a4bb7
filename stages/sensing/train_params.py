"""Parameters of training a sensing network, presets, and the learning rate schedule."""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.sensing.card import Normalisation, Precision
from stages.sensing.hidden_layers import widths_in
from stages.sensing.methods.method_params import (
    PLAIN,
    AugMix,
    MethodParams,
    SimClr,
    in_words,
    value_in_words,
)

Augmentation = Literal["none", "flip", "crop_flip"]
Schedule = Literal["steps", "one-cycle", "cosine"]
Trained = Literal["all", "last-layer", "classifier"]
Optimiser = Literal["sgd", "adam"]
WARM_UP = 0.25
"""Fraction of a one-cycle training during which the rate rises."""

LAST_RATE = 1e-6
"""Learning rate at which the cosine schedule ends, or its initial rate if that is lower."""


@dataclass(frozen=True, slots=True)
class TrainParams:
    """Parameters of a training. The defaults are the paper's, for SGD (its appendix C.1).

    Attributes:
        milestones: fractions of ``epochs`` after which ``steps`` multiplies the rate by ``gamma``;
            60, 120 and 160 of the paper's 200.
        schedule: ``steps``, or ``one-cycle``: a linear rise to ``lr``, then half a cosine to zero;
            ``cosine``: half a cosine from ``lr`` to ``LAST_RATE``.
        augmentation: ``flip`` (the paper's text), ``crop_flip`` (its code base) or ``none``.
        precision: ``bf16`` trains under autocast, with float32 weights.
        held_out: number of rows that are not trained on, drawn with ``seed``.
        held_out_until: fraction of ``epochs`` after which they are trained on too; 1 means never.
        nesterov: Nesterov's momentum.
        label_smoothing: share of the target that is spread over all classes, for a method whose
            loss is the cross entropy.
        train: layers that are trained; with ``last-layer``, or ``classifier`` of a network with
            hidden layers in it, the others stay in eval mode.
        optimiser: ``adam`` has no momentum of its own setting.
        method: training method, with its own parameters.
        flip_labels: training labels that are flipped, as text of `stages.data.flips.Flips`.
    """

    network: str = "resnet18"
    epochs: int = 200
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "steps"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    gamma: float = 0.2
    augmentation: Augmentation = "flip"
    precision: Precision = "fp32"
    seed: int = 0
    held_out: int = 0
    held_out_until: float = 1.0
    train: Trained = "all"
    optimiser: Optimiser = "sgd"
    method: MethodParams = PLAIN
    nesterov: bool = False
    flip_labels: str | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise InputError(f"{name} {value}: expected a finite number above 0")
        if self.batch < 2:
            raise InputError(f"batch {self.batch}: expected 2 or more images")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"weight decay {self.weight_decay}: expected a finite number, 0 or more"
            )
        choices = {
            "schedule": (self.schedule, get_args(Schedule)),
            "augmentation": (self.augmentation, get_args(Augmentation)),
            "precision": (self.precision, get_args(Precision)),
            "train": (self.train, get_args(Trained)),
            "optimiser": (self.optimiser, get_args(Optimiser)),
        }
        for name, (choice, known) in choices.items():
            if choice not in known:
                raise InputError(f"{name} {choice!r}: expected one of {', '.join(known)}")
        if not all(0 < share <= 1 for share in self.milestones):
            raise InputError(f"milestones {self.milestones}: expected shares of the epochs, 0 to 1")
        if self.held_out < 0:
            raise InputError(f"held out {self.held_out} rows: expected 0 or more")
        if not 0 < self.held_out_until <= 1:
            raise InputError(
                f"held out until {self.held_out_until}: expected a share of the epochs, above 0 "
                "and up to 1"
            )
        if self.held_out_until < 1 and not self.held_out:
            raise InputError(
                f"held out until {self.held_out_until}: no rows are held out; say how many with "
                "--held-out"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"label smoothing {self.label_smoothing}: expected a share from 0 to below 1"
            )
        if self.label_smoothing and isinstance(self.method, AugMix | SimClr):
            raise InputError(
                f"--label-smoothing: --method {self.method.name} has a loss of its own; omit one"
            )
        if self.train != "all" and not self.method.is_part_trainable:
            raise InputError(
                f"--method {self.method.name} trains all layers: omit --train {self.train}"
            )

    @property
    def n_epochs_held_out(self) -> int:
        """Number of epochs without the held-out rows: 0.6 of the paper's 200 are the first 120."""
        # A tolerance, as in ``learning_rate``.
        return math.ceil(self.held_out_until * self.epochs - 1e-9) if self.held_out else 0


def planned_params(params: TrainParams) -> dict[str, Any]:  # Any: JSON
    """The parameters as recorded in a plan.

    Held-out rows and flipped labels are only recorded if there are any, the layers only if not all
    are trained, and the optimiser, the method, Nesterov's momentum and label smoothing only if they
    are not the default, so that older plans remain valid.
    """
    values = dataclasses.asdict(params)
    if not params.held_out:
        del values["held_out"], values["held_out_until"]
    if params.train == "all":
        del values["train"]
    if params.optimiser == "sgd":
        del values["optimiser"]
    if params.method == PLAIN:
        del values["method"]
    if not params.nesterov:
        del values["nesterov"]
    if not params.label_smoothing:
        del values["label_smoothing"]
    if params.flip_labels is None:
        del values["flip_labels"]
    return values


def params_in_words(params: TrainParams) -> str:
    """The parameters as recorded in a plan, on one line."""
    values = planned_params(params)
    if "method" in values:
        values["method"] = in_words(params.method)
    return ", ".join(f"{name} {value_in_words(value)}" for name, value in values.items())


PRESETS = {
    "paper": TrainParams(),
    "paper-crop": TrainParams(augmentation="crop_flip"),
    "quick": TrainParams(
        network="cnn2", epochs=20, batch=32, lr=0.02, schedule="one-cycle", augmentation="none"
    ),
    "fine-tune": TrainParams(epochs=20, batch=64, lr=0.01, schedule="one-cycle"),
    "augmix": TrainParams(
        network="wrn40-2",
        epochs=100,
        schedule="cosine",
        augmentation="crop_flip",
        method=AugMix(),
        nesterov=True,
    ),
    "simclr": TrainParams(
        network="torchvision:resnet18",
        epochs=500,
        batch=512,
        lr=1e-3,
        weight_decay=1e-6,
        milestones=(),
        augmentation="none",
        optimiser="adam",
        method=SimClr(),
    ),
    "linear": TrainParams(
        network="torchvision:resnet18",
        epochs=100,
        batch=512,
        lr=1e-3,
        weight_decay=0.0,
        milestones=(),
        augmentation="none",
        optimiser="adam",
    ),
}
"""A method with a preset of its name uses it by default."""

PRESET_NORMALISATION = {"augmix": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
"""Normalisation of the pixels of a training from random weights, where a preset has its own."""


def check_trained_part(params: TrainParams) -> None:
    """Raise ``InputError`` if the network has no such part as ``train`` names.

    This is apart from the other checks, because the network may be that of a stored model.
    """
    if params.train == "classifier" and not widths_in(params.network):
        raise InputError(
            f"network {params.network}: --train classifier needs hidden layers in the classifier: "
            "add their widths to the network, as in resnet18+128, or use --train last-layer"
        )


def params_from(preset: str, **changes: Any) -> TrainParams:
    """A preset with some fields changed; fields that are ``None`` keep the preset's value.

    Raises:
        InputError: no such preset, or an invalid value.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(PRESETS[preset], **given)


def learning_rate(params: TrainParams, epoch: float) -> float:
    """The learning rate at ``epoch``, which counts from 0 and may be a fraction."""
    share = epoch / params.epochs
    if params.schedule == "steps":
        # The tolerance makes 0.3 x 200 epoch 60 in floating point too.
        n_passed = sum(share >= milestone - 1e-9 for milestone in params.milestones)
        return params.lr * float(params.gamma**n_passed)
    if params.schedule == "cosine":
        last = min(LAST_RATE, params.lr)
        return last + (params.lr - last) * 0.5 * (1 + math.cos(math.pi * share))
    if share < WARM_UP:
        return params.lr * (0.04 + 0.96 * share / WARM_UP)
    return params.lr * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def held_out_rows(n_rows: int, n_held_out: int, seed: int) -> NDArray[np.int64]:
    """Rows of its source that a training with this seed holds out, sorted.

    Rows are those of the source, including unreadable ones, as in its features.

    Args:
        n_rows: number of rows of the source on which the network is trained.
        n_held_out: number of rows to hold out.
        seed: seed of the training.
    """
    # A key of its own, far from the epochs, which are keyed by their number.
    generator = np.random.default_rng([seed, zlib.crc32(b"held-out")])
    return np.sort(generator.permutation(n_rows)[:n_held_out]).astype(np.int64)
