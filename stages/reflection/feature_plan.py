"""What the plan of a feature set says about its images and its network, as types.

Plans of older versions, and of other programs, may say less: what is missing has a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.data.class_names import numbers
from stages.data.planned_source import PlannedAlteration
from stages.data.resize import Resize
from stages.sensing.card import ModelCard
from stages.sensing.map_layers import MapLayer
from stages.typed import known, typed
from store.plan import Plan


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The data set of a feature set.

    Attributes:
        name: name of the data set.
        split: "train" or "test".
        family: name that a data set shares with its corrupted copies; ``None`` if the plan does not
            record it.
        fingerprint: hash of the images.
        class_names: names in the order of the labels.
        resize: rule by which images were brought to the network's size, or "none"; ``None`` if the
            plan does not record it.
        alteration: how images were denoised and augmented; ``None`` if they were not.
    """

    name: str = ""
    split: str | None = None
    family: str | None = None
    fingerprint: str | None = None
    class_names: tuple[str, ...] = ()
    resize: str | None = None
    alteration: PlannedAlteration | None = None

    @property
    def stored_fingerprint(self) -> str | None:
        """Hash of the images before they were denoised and augmented."""
        return self.fingerprint if self.alteration is None else self.alteration.fingerprint


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The network of a feature set; see `ModelCard` for its fields."""

    name: str = ""
    network: str | None = None
    weights_sha256: str = ""
    n_classes: int = 0
    feature_dim: int = 0
    class_names: tuple[str, ...] = ()
    M: float | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    last_layer: str | None = None
    resizing: Resize | None = None
    batch_statistics: int | None = None


@dataclass(frozen=True, slots=True)
class PerturbationFacts:
    """A perturbation of images; see `Odin` and `Pgd` for its fields.

    Attributes:
        target: identifies the head whose logits are attacked; ``None`` for f.
    """

    kind: str
    epsilon: float = 0.0
    steps: int = 1
    target: Mapping[str, Any] | None = None  # Any: JSON


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """The inputs of a feature set, and what its images went through before the network.

    Attributes:
        source: the data set.
        model: the network.
        precision: "fp32" or "bf16"; ``None`` if the plan does not record it.
        perturbations: facts of the perturbations in order, as JSON; empty for none.
        statistics: layers whose feature maps are summarised in the array of that name.
        gradients: layer, loss and size of the array ``gradients``; ``None`` if there is none.
    """

    source: SourceFacts
    model: ModelFacts
    precision: str | None = None
    perturbations: tuple[Mapping[str, Any], ...] = ()  # Any: JSON
    statistics: tuple[MapLayer, ...] = ()
    gradients: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, plan: Plan) -> FeaturePlan:
        """Read a plan; raises ``InputError`` if it is not in our format."""
        what = "plan of the features"
        inputs, stage = (known(plan.get(key, {}), what) for key in ("inputs", "stage"))
        source, model = (known(inputs.get(key, {}), what) for key in ("source", "model"))
        params = stage.get("params")
        facts = params if isinstance(params, Mapping) else {}  # other programs write none of ours
        layer = facts.get("layer")  # of maps, only its name
        gradients = layer if isinstance(layer, Mapping) else None
        found = {"source": source, "model": model, "gradients": gradients}
        return typed(cls, {**facts, **found}, what)

    def output_names(self, n_classes: int) -> tuple[str, ...]:
        """Names of the network's outputs, from the model, else from the data set, else numbers."""
        counted = numbers(n_classes)
        named = (self.model.class_names, self.source.class_names)
        return next((n for n in named if len(n) == n_classes and n != counted), counted)

    @property
    def is_moved_by_odin(self) -> bool:
        """Whether ODIN moved the images last."""
        what = "plan of the features: perturbations"
        kinds = [typed(PerturbationFacts, step, what).kind for step in self.perturbations]
        return kinds[-1:] == ["odin"]


def planned_model(plan: Plan) -> ModelCard:
    """The whole card of a feature set's network; raises ``InputError`` for another format."""
    what = "plan of the features"
    return ModelCard.from_dict(known(plan.get("inputs", {}), what).get("model", {}))
