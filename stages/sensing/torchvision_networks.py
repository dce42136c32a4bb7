"""torchvision's networks and their settings, including those that weights do not record."""

import math
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.checkpoint import Checkpoint
from stages.sensing.network_settings import Setting, parsed, spelled, unknown
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.trust import TORCHVISION

_INCEPTION: Mapping[str, Setting] = {"aux_logits": True, "transform_input": False}
_TRANSFORMER: Mapping[str, Setting] = {"image_size": 224}


def torchvision_network(network: str, n_classes: int | None) -> nn.Module:
    """Build a torchvision network with untrained weights.

    Args:
        network: ``torchvision:NAME``, then ``,setting=value`` for each setting.
        n_classes: number of logits; ``None`` for torchvision's 1,000.

    Raises:
        InputError: no such network or setting, or torchvision cannot be imported.
    """
    name, settings = _parsed(network)
    models = _models(network)
    options: dict[str, Any] = dict(settings)
    if n_classes is not None:
        options["num_classes"] = n_classes
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True  # both warn unless it is given
    built: nn.Module = models.get_model(name, weights=None, **options)
    return built


def torchvision_url(network: str) -> str:
    """Where torchvision publishes its best weights of a network, which are its default."""
    name, _ = _parsed(network)
    url: str = _models(network).get_model_weights(name).DEFAULT.url
    return url


def canonical(network: str) -> str:
    """The same network with its settings sorted, without torchvision's defaults.

    >>> canonical("torchvision:inception_v3,transform_input=True,aux_logits=true")
    'torchvision:inception_v3,transform_input=true'
    """
    name, settings = _parsed(network)
    defaults = _defaults(name)
    changed = {key: settings[key] for key in sorted(settings) if settings[key] != defaults[key]}
    return spelled(TORCHVISION, name, changed)


def with_settings_of(
    network: str, checkpoint: Checkpoint, *, is_published: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The network with the settings of a checkpoint, and notes on them.

    A state dict does not record settings. The image size of a vision transformer and the auxiliary
    heads can be inferred from the weights. ``transform_input`` cannot: it is known for published
    files, and for others it must be given.

    Args:
        network: with the settings that were given.
        checkpoint: the weights.
        is_published: whether they are a file that torchvision publishes for this network.

    Raises:
        InputError: ``transform_input`` is not given, and the file is not one that torchvision
            publishes.
    """
    if not network.startswith(TORCHVISION):
        return network, ()
    name, given = _parsed(network)
    found: dict[str, Setting] = {}
    if "aux_logits" in _defaults(name) and not _has_aux(checkpoint):
        found["aux_logits"] = False
    if "transform_input" in _defaults(name) and "transform_input" not in given:
        if not is_published:
            raise InputError(
                f"network {network}: the state dict in {checkpoint.path} does not record whether "
                "the network transforms its input, and the file is not the one that torchvision "
                f"publishes; give {network},transform_input=true for published weights and weights "
                f"fine-tuned from them, or {network},transform_input=false for other weights"
            )
        found["transform_input"] = True
    if "image_size" in _defaults(name) and (size := _image_size(checkpoint.weights)):
        found["image_size"] = size
    settings = {**found, **given}
    taken = canonical(spelled(TORCHVISION, name, settings))
    if taken == canonical(network):
        return taken, ()
    return taken, (f"weights {checkpoint.path}: loaded as weights of {taken}",)


def _parsed(network: str) -> tuple[str, dict[str, Setting]]:
    defaults = _defaults(network.removeprefix(TORCHVISION).partition(",")[0])
    return parsed(network, defaults)


def _defaults(name: str) -> Mapping[str, Setting]:
    """Settings that change what a network computes, with torchvision's defaults."""
    if name in ("googlenet", "inception_v3"):
        return _INCEPTION
    return _TRANSFORMER if name.startswith("vit_") else {}


def _models(network: str) -> ModuleType:
    """``torchvision.models``, checked to have the network."""
    try:
        models: ModuleType = import_torchvision().models
    except ImportError as error:
        raise InputError(
            f"network {network!r} needs torchvision, which cannot be imported ({error}); "
            "install the release that matches your torch"
        ) from error
    known = models.list_models(module=models)
    if (name := _parsed(network)[0]) not in known:
        raise InputError(unknown("torchvision network", name, known))
    return models


def _has_aux(checkpoint: Checkpoint) -> bool:
    names = (f".{name}" for name in checkpoint.weights)
    return any(re.search(r"\.(aux1|aux2|AuxLogits)\.", name) for name in names)


def _image_size(weights: Mapping[str, Tensor]) -> int | None:
    """Image size in pixels: the position embedding has a row per patch, and one for the class."""
    rows = _shape_of(weights, "encoder.pos_embedding")
    patch = _shape_of(weights, "conv_proj.weight")
    if len(rows) != 3 or len(patch) != 4:
        return None
    return math.isqrt(max(rows[1] - 1, 0)) * patch[3] or None


def _shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    found = (value for key, value in weights.items() if key == name or key.endswith(f".{name}"))
    return tuple(next((value.shape for value in found), ()))
