"""Check before training that a network can be rebuilt from what will be stored of it."""

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.checkpoint import Checkpoint
from stages.sensing.folding import copied
from stages.sensing.probe import TOLERANCE, difference, evaluating, seeded, size
from stages.sensing.weights import load_checkpoint, save_weights
from store.errors import first_line

_WITH_AUX = ("torchvision:googlenet", "torchvision:inception_v3")
"""Networks that also return the logits of auxiliary heads during training."""


def check_round_trip(network: nn.Module, card: ModelCard, *, is_trained: bool = False) -> None:
    """Save, rebuild, load and copy a network on its device, and compare logits on random pixels.

    Args:
        network: the network; neither it nor the state of random generators is changed.
        is_trained: whether it will be trained here; then it must also return logits in training
            mode, with gradients.

    Raises:
        InputError: it cannot be saved, rebuilt, loaded or copied, or its logits change.
    """
    device = next(network.parameters(), torch.zeros(0)).device
    shape = (2, 3, card.image_size, card.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        weights = load(save_weights(network))
        again = build_network(card.network, card.n_classes).to(device)
        load_checkpoint(again, Checkpoint(f"of network {card.network}", weights))
        with evaluating(network, card.image_size):
            expected, repeated = seeded(network, pixels), seeded(network, pixels)
        with evaluating(again, card.image_size):
            again(pixels)  # run hooks of older weight norm that compute weights before copying
            found = seeded(copied(again), pixels)
        # If the network has its own random generator, two passes differ even without a copy.
        if torch.equal(expected, repeated):
            _compare(expected, found, card)
        if is_trained:
            _check_training(again, pixels, card)


def _compare(expected: Tensor, found: Tensor, card: ModelCard) -> None:
    apart = difference(found, expected)
    if apart > max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps) * size(expected):
        raise InputError(
            f"network {card.network}: after rebuilding it from its own state dict, its logits "
            f"differ by {apart:.3g}; something that determines them is not in state_dict(): "
            "make it a parameter or a persistent buffer"
        )


def _check_training(network: nn.Module, pixels: Tensor, card: ModelCard) -> None:
    """Run two images in training mode, like the first batch; changes ``network``."""
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    try:
        logits = network.train()(pixels)
        if not isinstance(logits, Tensor):
            raise TypeError(f"expected one tensor of logits, found {type(logits).__name__}")
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    except Exception as error:
        has_aux = card.network.startswith(_WITH_AUX) and "aux_logits" not in card.network
        raise InputError(
            f"network {card.network}: fails in training mode on images of {card.image_size} pixels "
            f"({first_line(error)}); "
            + ("give the setting aux_logits=false" if has_aux else "test it with one batch")
        ) from error
