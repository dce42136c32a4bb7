"""What a training of a network holds in memory, and its checkpoint."""

from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.hidden_layers import classifier_name
from stages.sensing.labelled import LabelledImages
from stages.sensing.methods.method import Method
from stages.sensing.model import Sensing, last_layers
from stages.sensing.train_params import Trained, TrainParams
from stages.sensing.weights import cpu_copy, load_state

_KEPT = {
    "momentum_buffer": "momentum",
    "step": "step",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
}
"""What SGD and Adam keep of a parameter -> its name in a checkpoint."""


@dataclass(slots=True)
class TrainState:
    """What an epoch changes (network, optimiser) and what it reads, all on the device.

    ``trained`` is what the optimiser changes: the network, a part of it, or the network with what
    ``method`` adds to it. ``data`` has the ``n_clean`` images of the source, then those that
    ``method`` adds. ``kept`` has the indexes in it of the rows that are not held out, ``[m]``
    int64; ``test`` is read when it is first used. If only the classifier is trained, ``frozen``
    computes its input and ``features`` has it for all rows, ``[n, d]`` float32, unless augmentation
    changes them.
    """

    network: nn.Module
    trained: nn.Module
    optimiser: torch.optim.Optimizer
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


def classifier(network: nn.Module, card: ModelCard, train: Trained) -> nn.Module:
    """The last layer of a network, or its classifier with hidden layers, that is trained alone.

    Raises ``InputError`` if the network has more than one, or one that is not linear.
    """
    if train == "classifier":
        return network.get_submodule(classifier_name(card.last_layer))
    layers = last_layers(network, card)
    if len(layers) > 1 or not isinstance(layers[0], nn.Linear):
        raise InputError(
            f"network {card.network}: --train last-layer needs one linear layer, found "
            f"{card.last_layer!r} ({type(layers[0]).__name__}); give --train all"
        )
    return layers[0]


def optimiser_of(params: TrainParams, trained: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a module, before its first step."""
    weights, lr, decay = trained.parameters(), params.lr, params.weight_decay
    if params.optimiser == "adam":
        return torch.optim.Adam(weights, lr=lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        weights,
        lr=lr,
        momentum=params.momentum,
        weight_decay=decay,
        nesterov=params.nesterov,
        fused=True,
    )


def saved(state: TrainState) -> bytes:
    """Weights of the trained part and state of the optimiser, as safetensors."""
    part = state.trained
    tensors = {f"network.{name}": cpu_copy(x) for name, x in part.state_dict().items()}
    for name, parameter in part.named_parameters():
        kept = state.optimiser.state.get(parameter, {})
        for key, prefix in _KEPT.items():
            if kept.get(key) is not None:
                tensors[f"{prefix}.{name}"] = cpu_copy(kept[key])
    data: bytes = save_tensors(tensors)
    return data


def restore(state: TrainState, data: bytes) -> None:
    """The inverse of `saved`: load weights and optimiser into a fresh state, in place."""
    tensors, prefix = load_tensors(data), "network."
    load_state(
        state.trained,
        {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)},
    )
    for name, parameter in state.trained.named_parameters():
        for key, prefix in _KEPT.items():
            if (value := tensors.get(f"{prefix}.{name}")) is not None:
                state.optimiser.state[parameter][key] = _laid_out(value, parameter)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of the optimiser on the device and in the memory layout of its parameter."""
    if value.shape != parameter.shape:  # the number of steps
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value).detach()
