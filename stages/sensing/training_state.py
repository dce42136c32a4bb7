"""What a training of a network holds in memory, and its checkpoint."""

from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.labelled import LabelledImages
from stages.sensing.methods.method import Method
from stages.sensing.model import Sensing, last_layers
from stages.sensing.weights import cpu_copy, load_state


@dataclass(slots=True)
class TrainState:
    """What an epoch changes (network, optimiser) and what it reads, all on the device.

    ``data`` has the ``n_clean`` images of the source, then those that ``method`` adds. ``kept`` has
    the indexes in it of the rows that are not held out, ``[m]`` int64; ``test`` is read when it is
    first used. If only the last layer is trained, ``frozen`` computes its input and ``features``
    has it for all rows, ``[n, d]`` float32, unless augmentation changes them.
    """

    network: nn.Module
    optimiser: torch.optim.SGD
    data: LabelledImages
    n_clean: int
    kept: Tensor
    method: Method
    card: ModelCard
    mean: Tensor
    scale: Tensor
    memory_format: torch.memory_format
    test: LabelledImages | None = None
    frozen: Sensing | None = None
    features: Tensor | None = None

    @property
    def trained(self) -> nn.Module:
        """The part of the network that is trained."""
        return classifier(self.network, self.card) if self.frozen else self.network


def classifier(network: nn.Module, card: ModelCard) -> nn.Linear:
    """The last layer of a network that is trained alone.

    Raises ``InputError`` if the network has more than one, or one that is not linear.
    """
    layers = last_layers(network, card)
    if len(layers) > 1 or not isinstance(layers[0], nn.Linear):
        raise InputError(
            f"network {card.network}: --train last-layer needs one linear layer, found "
            f"{card.last_layer!r} ({type(layers[0]).__name__}); give --train all"
        )
    return layers[0]


def saved(state: TrainState) -> bytes:
    """Weights and momentum of the trained part, as safetensors."""
    part = state.trained
    tensors = {f"network.{name}": cpu_copy(x) for name, x in part.state_dict().items()}
    for name, parameter in part.named_parameters():
        momentum = state.optimiser.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = cpu_copy(momentum)
    data: bytes = save_tensors(tensors)
    return data


def restore(state: TrainState, data: bytes) -> None:
    """The inverse of `saved`: load weights and momentum into a fresh state, in place."""
    tensors, prefix = load_tensors(data), "network."
    load_state(
        state.trained,
        {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)},
    )
    for name, parameter in state.trained.named_parameters():
        if (momentum := tensors.get(f"momentum.{name}")) is not None:
            # empty_like keeps the parameter's memory layout, as the optimiser itself does.
            buffer = torch.empty_like(parameter).copy_(momentum)
            state.optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
