"""Sensing models: a network with its normalisation, which returns features and logits."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.batch_statistics import (
    Grouped,
    check_groups,
    fastest,
    in_turn,
    use_batch_statistics,
)
from stages.sensing.build import build_network, source_hash
from stages.sensing.card import (
    CIFAR10_NORMALISATION,
    ModelCard,
    Normalisation,
    Precision,
    check_normalisation,
)
from stages.sensing.device import require_device
from stages.sensing.feature_maps import differing, plain_statistics, tapped
from stages.sensing.folding import copied, fold
from stages.sensing.grey import takes_grey
from stages.sensing.last_layer import find_last_layer
from stages.sensing.last_layer_tap import LastLayerTap
from stages.sensing.logit_layers import (
    TOGETHER,
    LogitLayer,
    joint_bias,
    joint_weight,
    linear_map,
    logit_layers,
    side_by_side,
)
from stages.sensing.probe import (
    BF16_TOLERANCE,
    Answer,
    check_head,
    check_stable,
    computed,
    disagreement,
    evaluating,
    noise_images,
    noise_pixels,
    seeded,
)
from stages.sensing.weights import load_weights, weights_hash


def describe(
    network: nn.Module,
    *,
    name: str,
    network_name: str,
    class_names: tuple[str, ...],
    image_size: int,
    family: str,
    normalisation: Normalisation = CIFAR10_NORMALISATION,
    last_layer: str | None = None,
) -> ModelCard:
    """Describe a network with loaded weights; the last layer is found by a forward pass.

    Raises:
        InputError: no last linear layer, its outputs do not match the class names, or the
            normalisation is not meant for pixels in [0, 1].
    """
    check_normalisation(*normalisation)
    example = noise_pixels((image_size, image_size), 2)
    parameter = next(network.parameters(), example)
    layer = find_last_layer(network, example.to(parameter.device), last_layer)
    weight, _ = linear_map(logit_layers(network, layer))
    n_classes, feature_dim = weight.shape
    if class_names and len(class_names) != n_classes:
        raise InputError(
            f"network {network_name}: returns {n_classes} logits, the data set has "
            f"{len(class_names)} classes; use a network built for {len(class_names)}"
        )
    extra = {"source_sha256": source} if (source := source_hash(network_name)) else {}
    if takes_grey(network):
        _check_grey(network_name, normalisation)
        extra["channels"] = "grey"
    return ModelCard(
        name=name,
        network=network_name,
        n_classes=n_classes,
        class_names=tuple(class_names),
        image_size=image_size,
        mean=_channels(normalisation.mean),
        std=_channels(normalisation.std),
        last_layer=layer,
        feature_dim=feature_dim,
        family=family,
        M=None,
        weights_sha256=weights_hash(network),
        extra=extra,
    )


def _check_grey(network: str, normalisation: Normalisation) -> None:
    if any(len(set(values)) > 1 for values in normalisation):
        mean, std = (",".join(f"{value:.4g}" for value in each) for each in normalisation)
        raise InputError(
            f"network {network}: has one input channel, expected one number for the mean and one "
            f"for the std, found {mean} and {std}; give --mean X --std X"
        )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a copy of a network is rearranged for speed: see ``folding``, and torch's memory format.

    The default suits most networks. Some cannot be traced, and some depend on the memory layout.
    """

    is_folded: bool = True
    memory_format: torch.memory_format = torch.channels_last


ARRANGEMENTS = (Arrangement(), Arrangement(False), Arrangement(False, torch.contiguous_format))
"""Fastest first; the last one is the network as defined."""


class Sensing(nn.Module):
    """Returns the input and output of the last layer for images, in one forward pass in eval mode.

    It works on a rearranged copy of ``network``. The copy is not compared with the network here;
    ``sensing_of`` does that.

    Args:
        network: with loaded weights.
        card: names the last layer and the normalisation.
        precision: ``bf16`` runs the layers before the last one under autocast; the last layer is
            always float32, applied to the features that are returned.
        arrangement: how the copy is rearranged.
        maps: layers whose feature maps' `statistics` are recorded in each forward pass.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        precision: Precision = "fp32",
        arrangement: Arrangement = ARRANGEMENTS[0],
        maps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.in_groups: Grouped = in_turn
        self.taps = [LastLayerTap(layer) for layer in last_layers(network, card)]
        self.card = card
        self.arrangement = arrangement
        self.network = copied(network)
        for name, tap in zip(card.last_layer.split(TOGETHER), self.taps, strict=True):
            self.network.set_submodule(name, tap)
        self.map_taps = tapped(self.network, maps, self.taps[0])
        if arrangement.is_folded:
            self.network = fold(self.network)
        self.round_to(precision)
        # On pixels in 0..255: (x / 255 - mean) / std = (x - 255 mean) / (255 std).
        self.register_buffer("mean", 255 * torch.tensor(card.mean), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(card.std)), persistent=False)
        self.requires_grad_(False).eval()
        if arrangement.memory_format is torch.channels_last:
            lay_out(self, torch.channels_last)

    def round_to(self, precision: Precision) -> None:
        """Round weights once to the precision to which autocast would round them for every batch.

        Raises:
            InputError: unknown precision.
        """
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision {precision!r}: expected fp32 or bf16")
        self.precision = precision
        if precision == "bf16":
            for module in self.network.modules():
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(torch.bfloat16)

    @property
    def weight(self) -> Tensor:
        """``W`` of the last layer, ``[n_classes, feature_dim]`` float32."""
        return joint_weight([tap.weight for tap in self.taps])

    @property
    def bias(self) -> Tensor | None:
        """``b`` of the last layer, ``[n_classes]`` float32."""
        return joint_bias([tap.bias for tap in self.taps])

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # evaluation only
        """Stay in eval mode: with batch statistics, features would depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch.

        With batch statistics, the batch consists of groups of consecutive images, of which the last
        one may be shorter.

        Args:
            images: ``[n, H, W, 3]`` uint8 RGB, on this module's device.

        Returns:
            ``f`` ``[n, feature_dim]`` and ``z = W f + b`` ``[n, n_classes]``, both float32.
        """
        pixels = normalised(images, self.mean, self.scale)
        n_rows = self.card.batch_statistics
        return self.in_groups(self.vectors, pixels, n_rows) if n_rows else self.vectors(pixels)

    def statistics(self) -> Tensor:
        """Statistics of the feature maps of the last batch, layer by layer; see `map_statistics`.

        Shape ``[n, 2 k]`` float32 for ``k`` channels in all layers. They can be read once.
        """
        return torch.cat([tap.seen.pop() for tap in self.map_taps], dim=1)

    def vectors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised pixels ``[n, 3, H, W]``; differentiable.

        With batch statistics, the pixels are one group.
        """
        kind = pixels.device.type
        if self.arrangement.memory_format is not torch.channels_last:
            pixels = pixels.contiguous()
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            self.network(pixels)  # its output may be more than the logits
        features, logits = zip(*(tap.seen.pop() for tap in self.taps), strict=True)
        return side_by_side(features), torch.stack(logits).mean(0) if logits[1:] else logits[0]


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the weights of convolutions in a memory format, in place.

    ``Module.to`` refuses networks that have a tensor of five dimensions.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


def sensing_of(
    network: nn.Module,
    card: ModelCard,
    images: Tensor,
    precision: Precision = "fp32",
    *,
    is_new: bool = False,
    keeps_layers: bool = False,
    maps: Sequence[str] = (),
) -> Sensing:
    """The network rearranged for speed, on its device, checked to give the same output.

    Uses the first of ``ARRANGEMENTS`` whose features and logits equal those of the unmodified
    network in float32. The network is not modified.

    Args:
        network: with loaded weights.
        card: its card.
        images: some images of the run, ``[n, H, W, 3]`` uint8.
        precision: precision of the returned module.
        is_new: also check that the output for an image depends only on the image, unless the card
            accepts otherwise.
        keeps_layers: merge no layers, so that each is called under its name, with its hooks.
        maps: see `Sensing`; the statistics are checked like the features.

    Raises:
        InputError: the logits are not ``W f + b`` of the last layer, every rearrangement gives
            another output, the output is not stable, the network cannot be copied, or the
            precision is unknown.
    """
    layers, name = last_layers(network, card), f"model {card.name}"
    with evaluating(network, card.image_size):
        if is_new:  # add an image that is as different as possible
            images = torch.cat([255 - images[-1:], images])
        layer, noise = card.last_layer, noise_images((card.image_size, card.image_size))
        device = layers[0].weight.device
        pixels, answer = computed(
            network, layer, pixels_of(card, images, device), pixels_of(card, noise, device)
        )
        check_head(network, layer, answer, name)
        if is_new and not (card.accepts_unstable or card.batch_statistics):
            check_stable(network, layer, pixels, answer, name)
        sensing = _rearranged(network, card, pixels, answer, keeps_layers=keeps_layers, maps=maps)
        if card.batch_statistics:
            check_groups(sensing.vectors, pixels, card.batch_statistics, name)
            sensing.in_groups = fastest(sensing.vectors, pixels)
        if precision == "fp32":
            return sensing
        sensing.round_to(precision)
        found = _answer_of(sensing, pixels)
        if not card.accepts_unstable and (other := disagreement(found, answer, BF16_TOLERANCE)):
            raise InputError(f"{name}: bf16 gives different {other}: use --precision fp32")
        return sensing


def check_twin(sensing: Sensing, twin: Sensing, images: Tensor) -> None:
    """Check that a copy for another thread gives the same output; raises ``InputError``."""
    images = images.to(sensing.mean.device)
    with evaluating(sensing, sensing.card.image_size):
        ours, theirs = (Answer(*seeded(each, images)) for each in (sensing, twin))
    if twin.taps[0] is sensing.taps[0] or disagreement(theirs, ours):
        raise InputError(
            f"model {sensing.card.name}: copy.deepcopy does not give an independent copy of the "
            "network; keep no reference to another copy of its layers"
        )


def _rearranged(
    network: nn.Module,
    card: ModelCard,
    pixels: Tensor,
    answer: Answer,
    *,
    keeps_layers: bool,
    maps: Sequence[str],
) -> Sensing:
    """The first arrangement of a network that gives the same output for normalised pixels."""
    if maps:
        statistics = plain_statistics(network, maps, lambda: seeded(network, pixels))
    for arrangement in ARRANGEMENTS:
        if keeps_layers and arrangement.is_folded:
            continue
        try:
            sensing = Sensing(network, card, "fp32", arrangement, maps).to(pixels.device)
            with redirect_stderr(io.StringIO()):  # if traced code fails, torch prints it
                own = _answer_of(sensing, pixels)
            other = disagreement(own, answer)
            if maps and not other:
                other = differing(sensing.statistics(), statistics)
            if not other:
                return sensing
            found = f"gives different {other} from the network itself;"
        except (InputError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a copy of the network may raise anything
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            found = f"fails with {type(error).__name__}: {reason};"
    raise InputError(
        f"model {card.name}: a copy whose last layer {card.last_layer!r} is replaced by one that "
        f"records features {found} forward must call that layer by its name once, without hooks "
        "on it, checks of its type, or references to another copy of the layers"
    )


def _answer_of(sensing: Sensing, pixels: Tensor) -> Answer:
    """Features and logits of contiguous pixels, in the memory layout of ``forward``."""
    laid_out = pixels.contiguous(memory_format=torch.channels_last)
    return Answer(*seeded(sensing.vectors, laid_out))


def pixels_of(card: ModelCard, images: Tensor, device: torch.device) -> Tensor:
    """Images as the network expects them: normalised, contiguous."""
    mean, scale = 255 * torch.tensor(card.mean), 1 / (255 * torch.tensor(card.std))
    return normalised(images.to(device), mean.to(device), scale.to(device)).contiguous()


def last_layers(network: nn.Module, card: ModelCard) -> list[LogitLayer]:
    """The last layers that a card names; raises ``InputError`` if they do not match the card."""
    try:
        layers = logit_layers(network, card.last_layer)
    except InputError as error:
        raise InputError(
            f"model {card.name}: {error}; the card belongs to another network"
        ) from error
    if different := [each for each in layers if len(each.weight) != card.n_classes]:
        raise InputError(
            f"model {card.name}: expected {card.last_layer!r} to be a linear layer of "
            f"{card.n_classes} outputs, found {different[0]}; the card belongs to another network"
        )
    return layers


def normalised(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``[n, H, W, 3]`` of any dtype to float32 ``[n, 3, H, W]``, ``(x - mean) * scale``.

    The result is a copy, in channels-last memory.
    """
    pixels = images.to(torch.float32, copy=True).sub_(mean).mul_(scale)
    # Rows of RGB pixels already have the channels-last layout: no copy.
    return pixels.permute(0, 3, 1, 2)


def load_sensing(
    card: ModelCard,
    weights_path: str | Path,
    device: str = "cpu",
    precision: Precision = "fp32",
    *,
    images: Tensor | None = None,
    is_new: bool = False,
    keeps_layers: bool = False,
    maps: Sequence[str] = (),
) -> Sensing:
    """The model of ``card`` with the weights from a file, on ``device``, in eval mode.

    It is checked as in ``sensing_of``, on ``images`` of the run or on noise.

    Raises:
        DataNotFoundError: no such file, or no such user network.
        InputError: the weights do not fit the network or are not those of the card, the network
            fails the checks of ``sensing_of``, or torch cannot use the device.
    """
    require_device(device)
    network = load_network(card, weights_path).to(device)
    images = noise_images((card.image_size, card.image_size)) if images is None else images
    how = {"is_new": is_new, "keeps_layers": keeps_layers}
    return sensing_of(network, card, images, precision, **how, maps=maps)


def load_network(card: ModelCard, weights_path: str | Path) -> nn.Module:
    """The network of ``card`` with weights from a file, not rearranged; see ``load_sensing``."""
    check_code(card)
    network = build_network(card.network, card.n_classes)
    load_weights(network, weights_path)
    found = weights_hash(network)
    if card.weights_sha256 and found != card.weights_sha256:
        raise InputError(
            f"weights {weights_path}: not those of model {card.name} (expected "
            f"{card.weights_sha256[:12]}, found {found[:12]}); restore the file or import it again"
        )
    if card.batch_statistics:
        use_batch_statistics(network, card.network)
    return network.eval()


def check_code(card: ModelCard) -> None:
    """Check that a user's network still has the code with which the model was imported.

    Raises:
        InputError: its file was changed: with the same weights it would be another network.
    """
    expected = card.extra.get("source_sha256")
    if expected is not None and source_hash(card.network) != expected:
        raise InputError(
            f"model {card.name}: {card.network} was changed after the model was imported; restore "
            "the code, or import it as another --model with --network and --weights"
        )


def _channels(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
