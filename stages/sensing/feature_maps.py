"""Mean and standard deviation of feature maps over positions, recorded in a forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.map_layers import MapLayer
from stages.sensing.probe import TOLERANCE, difference, evaluating, noise_pixels, size

AUTO = "auto"
"""In place of layers: the output of each stage of a ResNet."""

_STAGE = re.compile(r"(.*\.)?(layer|stages\.)\d+")
"""Names of stages in ResNets of this package, torchvision and timm, and of transformers."""

_N_LISTED, _N_IMAGES = 12, 2

Found = TypeVar("Found")


class MapTap(nn.Module):
    """Passes on the output of a layer, and keeps the statistics of the last one in ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, output: object) -> object:
        """The output itself: a tensor, or a tuple that begins with one."""
        self.seen = [map_statistics(_first(output))]
        return output

    def hook(self, module: nn.Module, inputs: object, output: object) -> object:  # noqa: ARG002 - the signature of forward hooks
        """A forward hook. It is a method, so that a copy of a network uses its copy of the tap."""
        return self(output)


def tapped(network: nn.Module, layers: Sequence[str], holder: nn.Module) -> list[MapTap]:
    """Attach a tap to each of the layers of a network, in place.

    Args:
        network: a network.
        layers: names of some of its layers.
        holder: a part of the network that gets the taps as submodules, so that they are found when
            it is traced. It must not call its submodules, as ``nn.Sequential`` does.
    """
    taps = []
    for at, name in enumerate(layers):
        tap = MapTap()
        network.get_submodule(name).register_forward_hook(tap.hook)
        holder.add_module(f"map_tap_{at}", tap)
        taps.append(tap)
    return taps


@torch.no_grad()
def map_statistics(maps: Tensor) -> Tensor:
    """Mean and population standard deviation of each channel over positions, ``[n, 2 k]`` float32.

    The means of all channels precede the deviations. They are computed in two passes: on a CPU,
    ``torch.var_mean`` took eight times as long, and sums of squares lose digits.

    Args:
        maps: ``[n, k, h, w]``, ``[n, h, w, k]`` (see `is_channels_last`), or tokens ``[n, t, k]``.
    """
    values = maps.float()
    if maps.ndim == 4:
        last = values if is_channels_last(maps.shape) else values.permute(0, 2, 3, 1)
        values = last.flatten(1, 2)
    mean = values.mean(dim=1, keepdim=True)
    variance = (values - mean).square_().mean(dim=1)
    return torch.cat([mean.squeeze(1), variance.sqrt_()], dim=1)


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether maps of four axes have channels last: images are square, so the grid is."""
    _, first, second, third = shape
    return first == second != third and first > 1


def map_layers(card: ModelCard, names: Sequence[str]) -> tuple[MapLayer, ...]:
    """Find the layers with these names, or those of `AUTO`, by running an untrained network.

    Raises:
        InputError: a name is unknown or given twice, or a layer is not called exactly once for an
            image, or its output is not a feature map.
    """
    if len(set(names)) < len(names):
        raise InputError(f"--statistics {','.join(names)}: names a layer twice")
    network = build_network(card.network, card.n_classes).eval()
    images = noise_pixels((card.image_size, card.image_size), _N_IMAGES)
    every = [name for name, _ in network.named_modules() if name]
    with evaluating(network, card.image_size):
        outputs = _recorded(network, every, lambda: network(images), _shape)
    found = {name: _layer(name, shapes) for name, shapes in outputs.items()}
    if tuple(names) == (AUTO,):
        stages = [name for name in every if found[name] and _STAGE.fullmatch(name)]
        depth = min((name.count(".") for name in stages), default=0)
        names = [name for name in stages if name.count(".") == depth]
    layers = tuple(each for name in names if (each := found.get(name)))
    if len(layers) < max(1, len(names)):
        raise InputError(_refusal(names, found))
    return layers


def plain_statistics(
    network: nn.Module, layers: Sequence[str], run: Callable[[], object]
) -> Tensor:
    """Run an unmodified network; return the statistics of its layers, concatenated."""
    found = _recorded(network, layers, run, lambda output: map_statistics(_first(output)))
    return torch.cat([found[name][-1] for name in layers], dim=1)


def differing(found: Tensor, expected: Tensor) -> str:
    """How statistics differ, as text; empty if rounding can cause the difference."""
    apart, largest = difference(found, expected), size(expected)
    if apart <= TOLERANCE * largest:
        return ""
    return f"statistics of feature maps (by up to {apart:.3g}, with values up to {largest:.3g})"


def _recorded(
    network: nn.Module,
    layers: Sequence[str],
    run: Callable[[], object],
    what: Callable[[object], Found],
) -> dict[str, list[Found]]:
    """What is computed from each output of each layer at once: it may be overwritten later."""
    seen: dict[str, list[Found]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: seen[name].append(what(output))

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(network.get_submodule(name).register_forward_hook(hook(name)).remove)
        run()
    return seen


def _shape(output: object) -> tuple[int, ...]:
    found = _first(output)
    return tuple(found.shape) if isinstance(found, Tensor) else ()


def _layer(name: str, shapes: Sequence[tuple[int, ...]]) -> MapLayer | None:
    """The layer, if it was called once and returned a feature map for each image."""
    shape = shapes[0] if len(shapes) == 1 else ()
    if len(shape) not in (3, 4) or shape[0] != _N_IMAGES:
        return None
    return MapLayer(name, shape[-1 if len(shape) == 3 or is_channels_last(shape) else 1])


def _first(output: object) -> Any:  # Any: a tensor, if the layer has a feature map
    return output[0] if isinstance(output, tuple) and output else output


def _refusal(names: Sequence[str], found: Mapping[str, MapLayer | None]) -> str:
    known = [name for name, each in found.items() if each]
    more = f" and {len(known) - _N_LISTED:,} others" if len(known) > _N_LISTED else ""
    listed = f"{', '.join(known[:_N_LISTED])}{more}"
    if not names:
        return f"--statistics {AUTO}: the network has no stages; name some of its layers: {listed}"
    bad = next(name for name in names if not found.get(name))
    why = "is not called once, or returns no feature map" if bad in found else "does not exist"
    return f"--statistics {bad}: this layer {why}; expected some of {listed}"
