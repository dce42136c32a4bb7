"""timm's networks, and the preprocessing that timm publishes with each of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stages.data.resize import Resize
from stages.errors import InputError
from stages.sensing.card import Normalisation
from stages.sensing.checkpoint import Checkpoint
from stages.sensing.network_settings import Setting, parsed, spelled, unknown
from stages.sensing.torchvision_ops import define_missing_operators
from stages.sensing.trust import TIMM

_SETTINGS: Mapping[str, Setting] = {"img_size": 224, "in_chans": 1, "global_pool": "avg"}
"""Settings that may follow a name. The others of timm cannot: some of them read files."""


def timm_network(network: str, n_classes: int | None) -> nn.Module:
    """Build a network of timm.

    Args:
        network: ``timm:NAME``, then ``,setting=value`` for each setting. A name may end in a tag
            of weights, as in ``resnet50.a1_in1k``.
        n_classes: number of logits; ``None`` for that of its pretrained weights.

    Raises:
        InputError: no such network or setting, timm cannot be imported, or does not accept a
            setting for this network.
    """
    return _created(network, {} if n_classes is None else {"num_classes": n_classes})


def timm_checkpoint(network: str, checkpoint: Checkpoint) -> Checkpoint:
    """A file that timm publishes, under the names of the network, as timm converts it.

    Raises:
        InputError: the file does not fit the network; else as `timm_network`.
    """
    pretrained = {"state_dict": checkpoint.weights}
    built = _created(network, {"pretrained": True, "pretrained_cfg_overlay": pretrained})
    return replace(checkpoint, weights=built.state_dict())


def _created(network: str, options: Mapping[str, Any]) -> nn.Module:  # Any: timm's arguments
    name, settings = parsed(network, _SETTINGS)
    timm = _timm(network, name)
    try:
        built: nn.Module = timm.create_model(name, **settings, **options)
    except Exception as error:  # timm raises anything for a setting that a network does not have
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"network {network}: timm cannot build it ({type(error).__name__}: {reason}); change "
            "its settings or weights"
        ) from error
    return built


def canonical_timm(network: str) -> str:
    """The same network with its settings sorted.

    >>> canonical_timm("timm:vit_tiny_patch16_224,in_chans=1,img_size=64")
    'timm:vit_tiny_patch16_224,img_size=64,in_chans=1'
    """
    name, settings = parsed(network, _SETTINGS)
    return spelled(TIMM, name, dict(sorted(settings.items())))


def timm_preprocessing(network: str, image_size: int | None = None) -> tuple[Resize, Normalisation]:
    """How timm's ``create_transform`` prepares images for a network, outside training.

    Args:
        network: as in `timm_network`.
        image_size: input size in pixels, in place of the network's own.

    Raises:
        InputError: timm pads the images or does not make squares of them, or as `timm_network`.
    """
    _, settings = parsed(network, _SETTINGS)
    config, given = timm_config(network), image_size or settings.get("img_size")
    from timm.data import resolve_data_config  # the line above says if there is no timm

    found = resolve_data_config({"img_size": given}, pretrained_cfg=config)
    _, height, width = found["input_size"]
    if height != width or found["crop_mode"] not in ("center", "squash"):
        raise InputError(
            f"network {network}: timm prepares images of {height}x{width} pixels for it by "
            f"{found['crop_mode']!r}; expected squares, by 'center' or 'squash'"
        )
    side = int(height / found["crop_pct"])
    resize = (side, side) if found["crop_mode"] == "squash" else side
    resizing = Resize((height, width), resize, found["interpolation"])
    return resizing, Normalisation(tuple(found["mean"]), tuple(found["std"]))


def timm_config(network: str) -> Mapping[str, Any]:  # Any: each entry has its own type
    """timm's configuration of the pretrained weights of a network; may be empty."""
    name, _ = parsed(network, _SETTINGS)
    config = _timm(network, name).get_pretrained_cfg(name)
    return config.to_dict() if config else {}


def _timm(network: str, name: str) -> Any:  # Any: timm's functions have types of their own
    """timm, checked to have the network."""
    define_missing_operators()
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"network {network!r} needs timm, which cannot be imported ({error}); install it: "
            "pip install 'intro-pipe[timm]'"
        ) from error
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        raise InputError(unknown("timm network", plain, timm.list_models()))
    if tag and name not in (known := timm.list_pretrained(f"{plain}.*")):
        raise InputError(unknown("timm network", name, known or [plain]))
    return timm
