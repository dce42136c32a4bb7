"""f and H as one module: images in, two predictions out, in one forward pass; or f alone."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.data.planned_source import planned_source
from stages.errors import InputError
from stages.introspection.contenders import LABELS
from stages.introspection.head_card import (
    FittedLaplace,
    FittedTemperature,
    HeadCard,
    TrainedNetwork,
    further_of,
    head_card,
)
from stages.introspection.laplace import FullPosterior, KroneckerPosterior, read_posterior
from stages.introspection.predictors import open_head
from stages.introspection.preparation import labels_differ, made_of, models_differ
from stages.reflection.feature_plan import FeaturePlan
from stages.sensing.card import ModelCard
from stages.sensing.map_layers import STATISTICS
from stages.sensing.model import Sensing, load_sensing
from stages.sensing.models import model_card, weights_path
from stages.sensing.trust import require_trust
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.disk import replaced

FACTS_FILE = "intro-pipe.json"
"""Extra file of an exported program, with its classes and its image size."""

_TOLERANCE = 1e-5
_BATCHES = (1, 2, 5)
_EXAMPLE_ROWS = 3


class Introspective(nn.Module):
    """The sensing network f, and a head H that reads its features and logits, in eval mode.

    No backward pass is run: the gradients are computed from features and logits.

    Args:
        sensing: f.
        head: features ``[n, d]`` and logits ``[n, N]`` to logits ``[n, N]``; None for f alone.
        facts: facts about the model and the head.
    """

    def __init__(self, sensing: Sensing, head: nn.Module | None, facts: dict[str, Any]) -> None:
        super().__init__()
        self.sensing = sensing
        self.head = head
        self.facts = facts
        self.requires_grad_(False).eval()

    @property
    def card(self) -> ModelCard:
        """The card of f."""
        return self.sensing.card

    @property
    def resize(self) -> str | None:
        """How the training images were resized; ``None`` if that is not known."""
        return self.facts.get("resize")

    @property
    def label(self) -> str:
        """Label of the head in tables: H for a trained head, T for a temperature, ..."""
        return LABELS.get(self.facts.get("predictor", ""), "H")

    @property
    def last(self) -> str:
        """The head with its name, or the model if there is no head, for messages."""
        head, model = self.facts["head"], self.facts["model"]
        return f"head '{head}'" if head else f"model '{model}'"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of f and of H, each ``[n, N]`` float32, of images ``[n, H, W, 3]`` uint8 RGB."""
        features, logits = self.sensing(images)
        if self.head is None:
            return (logits,)
        if not self.sensing.map_taps:
            return logits, self.head(features, logits)
        return logits, self.head(features, logits, {STATISTICS: self.sensing.statistics()})


class _Tempered(nn.Module):
    """The logits of f divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG002 - the signature of all heads
        return logits / self.temperature


class _Marginalised(nn.Module):
    """The logits of `probit_logits` under a Laplace approximation."""

    covariance: Tensor
    inputs: Tensor
    along: Tensor

    def __init__(self, posterior: FullPosterior | KroneckerPosterior) -> None:
        super().__init__()
        self.has_bias, self.is_full = posterior.has_bias, isinstance(posterior, FullPosterior)
        if isinstance(posterior, FullPosterior):
            own = np.arange(len(posterior.covariance))
            arrays = {"covariance": posterior.covariance[own, :, own]}
        else:
            along = posterior.shrinkage @ np.square(posterior.class_vectors).T
            arrays = {"inputs": posterior.input_vectors, "along": along}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array).float(), persistent=False)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        f = functional.pad(features, (0, 1), value=1.0) if self.has_bias else features
        if self.is_full:
            variances = torch.einsum("nd,kde,ne->nk", f, self.covariance, f)
        else:
            variances = (f @ self.inputs).square() @ self.along
        return logits / (1 + math.pi / 8 * variances).sqrt()


def open_introspective(
    store: FeatureStore,
    head: str,
    *,
    model: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    images: Callable[[int], Tensor] | None = None,
) -> Introspective:
    """A head of the store and its model.

    Args:
        store: store of both.
        head: a trained head, a temperature, or a Laplace approximation.
        model: name of the model; by default, the name under which the head was trained.
        seed: one of the head's seeds; the first by default.
        device: device of both.
        images: returns a few uint8 images of the run, of a given size, to check the network on; by
            default noise is used.

    Raises:
        InputError: the head belongs to other weights or to another preparation of images, has no
            such seed, or cannot be a module.
        NotFoundError: the head or the model does not exist.
    """
    artifact = store.artifact("head", head)
    trained = head_card(artifact)
    name = model or trained.model
    card = model_card(store.artifact("model", name))
    if card.weights_sha256 != trained.model_weights_sha256:
        raise InputError(
            f"head '{head}' belongs to model '{trained.model}' "
            f"({trained.model_weights_sha256[:12]}), model '{name}' has other weights "
            f"({card.weights_sha256[:12]}): name the head's model, or train a head on this one"
        )
    module = _head_module(artifact, trained, seed, device)
    trained_on = made_of(store, artifact)
    _check_preparation(card, head, trained_on)
    require_trust(card.network, f"model {card.name}")
    sample = images(card.image_size) if images else None
    maps = _map_layers(trained)
    sensing = load_sensing(
        card, weights_path(store, name), device, images=sample, is_new=True, maps=maps
    )
    facts = {"model": name, "head": head, "seed": seed, "predictor": trained.kind}
    if trained_on is not None:
        facts["resize"] = trained_on.source.resize
    return Introspective(sensing, module, facts)


def _map_layers(head: HeadCard) -> list[str]:
    """The layers whose statistics a head reads; raises ``InputError`` if it reads gradients."""
    further = further_of(head)
    if further.gradients:
        raise InputError(
            f"head '{head.name}' reads gradients of {further.gradients.layer}, which predict does "
            "not compute: use a head without them, or extract the images and evaluate the head"
        )
    return [each.layer for each in further.statistics]


def open_f(
    store: FeatureStore,
    model: str,
    *,
    device: str = "cpu",
    images: Callable[[int], Tensor] | None = None,
) -> Introspective:
    """A model of the store without a head; see `open_introspective`.

    Raises:
        InputError: the model is code that the user has not named, or fails the checks of a network.
        NotFoundError: the model does not exist.
    """
    artifact = store.artifact("model", model)
    card = model_card(artifact)
    require_trust(card.network, f"model {card.name}")
    sample = images(card.image_size) if images else None
    sensing = load_sensing(card, weights_path(store, model), device, images=sample, is_new=True)
    facts = {"model": model, "head": None, "predictor": "f"}
    source = artifact.plan().get("inputs", {}).get("source")  # imported models have none
    if source is not None:
        facts["resize"] = planned_source(source).resize
    return Introspective(sensing, None, facts)


def _check_preparation(card: ModelCard, head: str, trained_on: FeaturePlan | None) -> None:
    """Raise ``InputError`` if a model prepares images differently from the head's model."""
    if trained_on is None:
        return
    different = models_differ(card, trained_on.model)
    different += labels_differ(card.class_names, trained_on.model.class_names)
    if different:
        raise InputError(
            f"head '{head}' was trained on images that were prepared differently from those of "
            f"model '{card.name}' ({'; '.join(different)}): use the head's model, or train a head "
            "on this one"
        )


def _head_module(artifact: Artifact, card: HeadCard, seed: int | None, device: str) -> nn.Module:
    if isinstance(card.predictor, TrainedNetwork):
        return open_head(artifact, seed, device=device)
    if seed not in (None, 0):
        raise InputError(f"head '{artifact.name}': it was fitted without seeds; leave out --seed")
    if isinstance(card.predictor, FittedTemperature):
        return _Tempered(card.predictor.temperature)
    if isinstance(card.predictor, FittedLaplace):
        how = card.predictor
        return _Marginalised(read_posterior(artifact, how.structure, has_bias=how.has_bias))
    raise InputError(
        f"head '{artifact.name}' is one of {card.kind}, which reads its training set: "
        "`intro-pipe evaluate` evaluates it; predict needs another kind of head"
    )


def export(introspective: Introspective, path: str | Path) -> float:
    """Save the module as a ``torch.export`` program for batches of any size, on the CPU.

    The file is only written if the program, loaded again, gives the same logits on random images.

    Returns:
        The largest difference between the logits of the two.

    Raises:
        InputError: the network cannot be exported, or its program gives other logits.
    """
    path = Path(path)
    # Plain weights: those that are channels-last would be saved as views, with a warning for each.
    module = copy.deepcopy(introspective).cpu()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub lacks it
    facts = {**introspective.facts, "card": introspective.card.to_dict()}
    content = io.BytesIO()
    torch.export.save(_program_of(module), content, extra_files={FACTS_FILE: json.dumps(facts)})
    content.seek(0)
    loaded = torch.export.load(content).module()
    # Not Python's max, which ignores NaN.
    largest = float(np.max([_difference(module, loaded, n_images) for n_images in _BATCHES]))
    if not largest < _TOLERANCE:
        raise InputError(
            f"model {introspective.card.name}: its exported program gives other logits (by "
            f"{largest:.2g}, expected less than {_TOLERANCE:g}); {path} was not written"
        )
    with replaced(path) as unfinished:
        unfinished.write_bytes(content.getvalue())
    return largest


def _program_of(module: Introspective) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    images = _random_images(module.card.image_size, _EXAMPLE_ROWS)
    try:
        return torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a user's network raises when it is traced
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"model {module.card.name}: {module.card.network} cannot be exported by torch.export "
            f"({type(error).__name__}: {reason}); predict without --export works"
        ) from error


def _difference(module: Introspective, loaded: nn.Module, n_images: int) -> float:
    images = _random_images(module.card.image_size, n_images)
    pairs = zip(module(images), loaded(images), strict=True)
    return float(np.max([float((ours - theirs).abs().max()) for ours, theirs in pairs]))


def _random_images(size: int, n_images: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_images)
    return torch.randint(0, 256, (n_images, size, size, 3), dtype=torch.uint8, generator=generator)
