"""Weights that a training starts from: check that they fit a network, and load them into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.errors import InputError
from stages.sensing.hidden_layers import (
    classifier_name,
    plain_name,
    widths_in,
    with_widths,
    without_hidden_layers,
)

if TYPE_CHECKING:
    from torch import nn

    from stages.sensing.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Weights that fit a network, except a last layer for other classes.

    Attributes:
        network: name of the network, with the settings that the weights determine.
        file: where the weights are, as for `read_checkpoint`.
        key: entry of the checkpoint, as for `read_checkpoint`.
        is_pretrained: whether the file is the `pretrained_file` of the network.
        sha256: `tensors_hash` of the state dict.
        notes: messages on what was used.
    """

    network: str
    file: str
    key: str | None
    is_pretrained: bool
    sha256: str
    notes: tuple[str, ...] = ()


def initial_weights(
    network: str,
    file: str,
    key: str | None = None,
    *,
    n_classes: int | None,
    image_size: int,
    last_layer: str | None = None,
    is_published: bool = False,
    is_pretrained: bool = False,
) -> InitialWeights:
    """The weights in a file, checked to fit a network.

    Args:
        network: name of the network, as in `build_network`.
        file: file or URL, as for `read_checkpoint`.
        key: entry of the checkpoint, as for `read_checkpoint`.
        n_classes: number of classes of the training images.
        image_size: height and width of the network's input in pixels.
        last_layer: name of the last linear layer, if it cannot be found automatically.
        is_published: whether the library of the network publishes the file.
        is_pretrained: whether the file is the `pretrained_file` of the network.

    Raises:
        DataNotFoundError: no such file.
        InputError: the file has no weights that can be read, or they do not fit the network.
    """
    from stages.sensing.build import build_network
    from stages.sensing.last_layer import find_last_layer
    from stages.sensing.pretrained import checkpoint_in
    from stages.sensing.probe import noise_pixels
    from stages.sensing.torchvision_networks import with_settings_of
    from stages.sensing.weights import tensors_hash

    checkpoint = checkpoint_in(file, key, plain_name(network), is_pretrained=is_pretrained)
    plain, notes = with_settings_of(plain_name(network), checkpoint, is_published=is_published)
    network = with_widths(plain, widths_in(network))
    module = build_network(network, n_classes)
    layer = find_last_layer(module, noise_pixels((image_size, image_size), 2), last_layer)
    notes += _load(module, checkpoint, layer, network)
    sha256 = tensors_hash(checkpoint.weights)
    return InitialWeights(network, file, key, is_pretrained, sha256, notes)


def load_initial(module: nn.Module, weights: InitialWeights, classifier: str) -> None:
    """Load pretrained weights into a network, in place; ``classifier`` is its last linear layer.

    Raises:
        DataNotFoundError: the file no longer exists.
        InputError: the file was changed after it was checked.
    """
    from stages.sensing.pretrained import checkpoint_in
    from stages.sensing.weights import tensors_hash

    plain = plain_name(weights.network)
    checkpoint = checkpoint_in(
        weights.file, weights.key, plain, is_pretrained=weights.is_pretrained
    )
    if (found := tensors_hash(checkpoint.weights)) != weights.sha256:
        raise InputError(
            f"weights {weights.file}: changed since the training was planned (expected "
            f"{weights.sha256[:12]}, found {found[:12]}); run the command again"
        )
    _load(module, checkpoint, classifier, weights.network)


def _load(
    module: nn.Module, checkpoint: Checkpoint, last_layer: str, network: str
) -> tuple[str, ...]:
    """Load a checkpoint into a network, in place; returns notes on what was used.

    A classifier with hidden layers keeps its own weights, unless the checkpoint has them too.
    """
    from stages.sensing.weights import load_backbone

    first = f"{classifier_name(last_layer)}.0.weight"
    if not widths_in(network) or any(name.endswith(first) for name in checkpoint.weights):
        return load_backbone(module, checkpoint, last_layer)
    with without_hidden_layers(module, last_layer) as layer:
        notes = load_backbone(module, checkpoint, layer)
    new = f"weights {checkpoint.path}: the classifier {layer!r} of {network} is newly initialised"
    return (*(note for note in notes if repr(layer) not in note), new)
