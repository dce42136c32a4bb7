"""A sensing model: a network, what it must be fed, and its two outputs."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import InputError
from stages.sensing.build import build_network, source_hash
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard, Precision
from stages.sensing.folding import folded
from stages.sensing.last_layer import find_last_linear
from stages.sensing.weights import load_weights, weights_hash


def describe(
    network: nn.Module,
    *,
    name: str,
    network_name: str,
    class_names: tuple[str, ...],
    image_size: int,
    family: str,
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
    last_layer: str | None = None,
    M: float | None = None,
    extra: Mapping[str, Any] | None = None,  # Any: JSON
) -> ModelCard:
    """The card of ``network``, its weights loaded: the last layer is found by a forward pass.

    Raises:
        InputError: no last linear layer, or it has not one output for each class name.
    """
    example = torch.zeros(2, 3, image_size, image_size)
    parameter = next(network.parameters(), example)
    layer = find_last_linear(network, example.to(parameter.device), last_layer)
    linear = network.get_submodule(layer)
    assert isinstance(linear, nn.Linear)  # what find_last_linear promises
    if class_names and len(class_names) != linear.out_features:
        raise InputError(
            f"network {network_name}: gives {linear.out_features} logits, the data set has "
            f"{len(class_names)} classes; take a network built for {len(class_names)}"
        )
    source = source_hash(network_name)
    return ModelCard(
        name=name,
        network=network_name,
        n_classes=linear.out_features,
        class_names=tuple(class_names),
        image_size=image_size,
        mean=_channels(mean),
        std=_channels(std),
        last_layer=layer,
        feature_dim=linear.in_features,
        family=family,
        M=M,
        weights_sha256=weights_hash(network),
        extra={**(extra or {}), **({"source_sha256": source} if source else {})},
    )


class Sensing(nn.Module):
    """Images in, the last layer's input and output out, in one forward pass in eval mode.

    Works on a copy of ``network``, rearranged for speed (see ``folding``), channels-last.

    Args:
        network: with its weights loaded.
        card: names the last layer and the normalisation.
        precision: ``bf16`` runs the layers before the last one under autocast; the last layer is
            always float32, on the features that are returned.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, card: ModelCard, precision: Precision = "fp32") -> None:
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision {precision!r}: expected fp32 or bf16")
        linear = network.get_submodule(card.last_layer)
        if not isinstance(linear, nn.Linear) or linear.out_features != card.n_classes:
            raise InputError(
                f"model {card.name}: expected {card.last_layer!r} to be a linear layer of "
                f"{card.n_classes} outputs, found {linear}; the card belongs to another network"
            )
        self.card = card
        self.precision = precision
        self.network = _fast_copy(network, card)
        self.last = _Tap(self.network.get_submodule(card.last_layer))
        self.network.set_submodule(card.last_layer, self.last)
        if precision == "bf16":
            _round_weights(self.network)
        # On pixels in 0..255: (x / 255 - mean) / std = (x - 255 mean) / (255 std).
        self.register_buffer("mean", 255 * torch.tensor(card.mean), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(card.std)), persistent=False)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it

    @property
    def weight(self) -> Tensor:
        """``W`` of the last layer, ``[n_classes, feature_dim]`` float32."""
        return self.last.weight

    @property
    def bias(self) -> Tensor | None:
        """``b`` of the last layer, ``[n_classes]`` float32."""
        return self.last.bias

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # evaluation only
        """Stay in eval mode: features with batch statistics would depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch.

        Args:
            images: ``[n, H, W, 3]`` uint8 RGB, on this module's device.

        Returns:
            ``f`` ``[n, feature_dim]`` and ``z = W f + b`` ``[n, n_classes]``, both float32.
        """
        return self.vectors(normalised(images, self.mean, self.scale))

    def vectors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same of normalised pixels ``[n, 3, H, W]``; gradients to them can be taken."""
        kind = pixels.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(pixels)
        return self.last.inputs.pop(), logits


@torch.no_grad()
def _fast_copy(network: nn.Module, card: ModelCard) -> nn.Module:
    """The folded network, if it gives the same logits on random pixels; else a plain copy.

    Tracing follows one path through a network's code, and may miss what depends on types or values.
    """
    plain = copy.deepcopy(network).eval()
    fast = folded(network)
    device = next((value.device for value in plain.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, card.image_size, card.image_size)
    pixels = (3 * torch.randn(shape, generator=generator)).to(device)
    try:
        expected = plain(pixels)
        agrees = torch.allclose(fast(pixels), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
        has_layer = isinstance(fast.get_submodule(card.last_layer), nn.Linear)
    except (AttributeError, RuntimeError, TypeError):
        return plain
    return fast if agrees and has_layer else plain


def _round_weights(network: nn.Module) -> None:
    """Round once what autocast would round for every batch."""
    for module in network.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(torch.bfloat16)


def normalised(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``[n, H, W, 3]`` uint8 to float32 ``[n, 3, H, W]``, ``(x - mean) * scale``, channels-last."""
    pixels = images.to(torch.float32).sub_(mean).mul_(scale)
    # Rows of RGB pixels are what channels-last means: no copy.
    return pixels.permute(0, 3, 1, 2)


def load_sensing(
    card: ModelCard,
    weights_path: str | Path,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> Sensing:
    """The model of ``card`` with the weights of a file, on ``device``, in eval mode.

    Raises:
        DataNotFoundError: no such file, or no such user network.
        InputError: the weights do not fit the network, or are not those that the card names.
    """
    check_code(card)
    network = build_network(card.network, card.n_classes)
    load_weights(network, weights_path)
    found = weights_hash(network)
    if card.weights_sha256 and found != card.weights_sha256:
        raise InputError(
            f"weights {weights_path}: not those of model {card.name} (expected "
            f"{card.weights_sha256[:12]}, found {found[:12]}); restore the file or describe it anew"
        )
    return Sensing(network, card, precision).to(device)


def check_code(card: ModelCard) -> None:
    """Make sure that a user's network is still the code that the model was taken in with.

    Raises:
        InputError: its file was changed: with the same weights it would be another network.
    """
    expected = card.extra.get("source_sha256")
    if expected is not None and source_hash(card.network) != expected:
        raise InputError(
            f"model {card.name}: {card.network} was changed since the model was taken in; put the "
            "code back, or take it in as another --model with --network and --weights"
        )


class _Tap(nn.Module):
    """The last linear layer, in float32; ``inputs`` holds its input until it is taken out.

    Taken out within the same forward pass, it leaves no trace, as ``torch.export`` asks for.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)  # Sensing has checked
        self.weight = nn.Parameter(linear.weight.detach().float())
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().float())
        self.inputs: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        """``f [n, d]`` of any dtype -> ``W f + b`` in float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            self.inputs = [features]  # a new list: none is left over from a pass that failed
            return functional.linear(features, self.weight, self.bias)


def _channels(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
