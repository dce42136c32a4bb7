"""What a model is, without its weights: the card that its directory keeps. No torch here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from stages.errors import InputError
from stages.typed import typed

Precision = Literal["fp32", "bf16"]
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
"""config.py of meliketoy/wide-resnet.pytorch (method notes, section 1.2)."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything about a model except its weights, as ``model.json`` holds it.

    ``mean`` and ``std`` belong to pixels in [0, 1], one number a channel. ``M`` is the mean over
    the training images of the largest logit. ``weights_sha256`` identifies the weights by content.
    """

    name: str
    network: str
    n_classes: int
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    last_layer: str
    feature_dim: int
    family: str
    M: float | None
    weights_sha256: str
    extra: dict[str, Any] = field(default_factory=dict)  # Any: JSON

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.n_classes:
            raise InputError(
                f"model {self.name}: {self.n_classes} classes, {len(self.class_names)} class names"
            )
        if min(self.std) <= 0:
            raise InputError(f"model {self.name}: std must be positive, found {self.std}")

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """A dict of what JSON knows, which its round trip leaves as it is."""
        values = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:  # Any: JSON
        """The card back from ``to_dict``, also after a trip through JSON.

        Raises:
            InputError: a key is missing or unknown, or a value is of another type.
        """
        if not isinstance(values, Mapping):
            raise InputError("model card: expected names and values; write it again")
        names = {item.name for item in dataclasses.fields(cls)}
        if missing := sorted(names - values.keys() - {"extra"}):
            raise InputError(f"model card: no {missing[0]!r}; write it again with train-sensing")
        if unknown := sorted(values.keys() - names):
            raise InputError(f"model card: unknown key {unknown[0]!r}; a newer version wrote it?")
        return typed(cls, values, "model card")
