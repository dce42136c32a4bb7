"""Model cards: everything about a model except its weights. This module does not import torch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from pydantic import FiniteFloat, PositiveInt

from stages.data.resize import Resize
from stages.errors import InputError
from stages.typed import typed

Precision = Literal["fp32", "bf16"]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
CIFAR10_NORMALISATION = Normalisation(CIFAR10_MEAN, CIFAR10_STD)
"""Constants of CIFAR-10 from config.py of meliketoy/wide-resnet.pytorch (method notes, 1.2)."""

UNNORMALISED = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The network gets pixels in [0, 1]."""

ACCEPTS_UNSTABLE = {"accepts": "unstable"}
"""Facts in ``extra`` of a network that was accepted although its output for an image depends on
chance or on the other images of the batch."""


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Check that a normalisation is meant for pixels in [0, 1]; ``None`` is not checked.

    Args:
        mean: mean of each channel, 0 to 1.
        std: standard deviation of each channel, above 0 and at most 1. For a network that expects
            unscaled pixels (0-255), the mean is 0 and the std 1/255.

    Raises:
        InputError: a value is out of range; the message shows the values divided by 255 if that
            would help.
    """
    for option, values in (("--mean", mean), ("--std", std)):
        if values is None:
            continue
        given = ",".join(f"{value:.10g}" for value in values)
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise InputError(f"{option} {given}: expected three finite numbers, one per channel")
        lowest = "0 or more" if option == "--mean" else "more than 0"
        if min(values) < 0 or (option == "--std" and min(values) == 0):
            raise InputError(
                f"{option} {given}: expected {lowest} and at most 1, for pixels in [0, 1]"
            )
        if max(values) > 1:
            divided = ",".join(f"{value / 255:.4g}" for value in values)
            raise InputError(
                f"{option} {given}: expected values for pixels in [0, 1], found some above 1; "
                f"divided by 255 they are {option} {divided} (divide both --mean and --std)"
            )


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything about a model except its weights, as stored in ``model.json``.

    ``mean`` and ``std`` apply to pixels in [0, 1], one number per channel. `check_normalisation` is
    called where a network is described or requested, not here, so that cards of older versions can
    still be read. ``M`` is the mean over the training images of the largest logit.
    ``weights_sha256`` identifies the weights by content. ``resizing`` says how images become the
    input; None, in cards of older versions, leaves it to the layout of the data set, and is not
    part of the JSON form. Neither is ``batch_statistics`` if it is None; else it is the number of
    images in a group, whose mean and variance batch norm uses in place of the running ones.
    """

    name: str
    network: str
    n_classes: int
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    last_layer: str
    feature_dim: int
    family: str
    M: FiniteFloat | None
    weights_sha256: str
    extra: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    resizing: Resize | None = None
    batch_statistics: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.n_classes:
            raise InputError(
                f"model {self.name}: {self.n_classes} classes, {len(self.class_names)} class names"
            )
        if min(self.std) <= 0:
            raise InputError(f"model {self.name}: std must be positive, found {self.std}")

    @property
    def input(self) -> Resize:
        """How images become the network's input."""
        return self.resizing or Resize((self.image_size, self.image_size))

    @property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of each channel."""
        return Normalisation(self.mean, self.std)

    def normalised_by(self, how: Normalisation) -> Self:
        """The card with another normalisation."""
        (red, green, blue), (of_red, of_green, of_blue) = how
        mean, std = (red, green, blue), (of_red, of_green, of_blue)
        return dataclasses.replace(self, mean=mean, std=std)

    @property
    def accepts_unstable(self) -> bool:
        """Whether its output for an image may depend on chance or on the rest of the batch."""
        return self.extra.items() >= ACCEPTS_UNSTABLE.items()

    def with_facts(self, facts: Mapping[str, Any]) -> Self:  # Any: JSON
        """The card with these facts in ``extra``, followed by its own."""
        return dataclasses.replace(self, extra={**facts, **self.extra})

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form, which a round trip through JSON does not change."""
        values = dataclasses.asdict(self)
        if self.batch_statistics is None:
            del values["batch_statistics"]
        if self.resizing is None:
            del values["resizing"]
        else:
            del values["resizing"]["decoding"]  # each data set's own
            values["resizing"] = _listed(values["resizing"])
        return _listed(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:  # Any: JSON
        """The inverse of ``to_dict``, also after a round trip through JSON.

        Raises:
            InputError: a key is missing or unknown, or a value is of another type.
        """
        if not isinstance(values, Mapping):
            raise InputError("model card: expected names and values; write it again")
        names = {item.name for item in dataclasses.fields(cls)}
        if missing := sorted(names - values.keys() - _OPTIONAL):
            raise InputError(f"model card: no {missing[0]!r}; write it again with train-sensing")
        if unknown := sorted(values.keys() - names):
            raise InputError(f"model card: unknown key {unknown[0]!r}; a newer version wrote it?")
        return typed(cls, values, "model card")


_OPTIONAL = {"extra", "resizing", "batch_statistics"}
"""Keys that the JSON form may lack."""


def _listed(values: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }
