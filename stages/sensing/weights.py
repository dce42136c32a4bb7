"""Weights of networks: load them from a matching checkpoint, save them, hash their content."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.checkpoint import Checkpoint, read_checkpoint
from stages.sensing.logit_layers import TOGETHER, is_logit_layer
from stages.sensing.matching import matched

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into ``module``, in place; every weight must match.

    ``path`` is what ``read_weight_file`` accepts.

    Raises:
        DataNotFoundError: no such file.
        InputError: the file contains code, is damaged, or belongs to another architecture; the
            message names the first key that differs.
    """
    load_checkpoint(module, read_checkpoint(path))


def load_checkpoint(module: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Load a checkpoint into ``module``, in place; returns notes on what was used.

    Raises:
        InputError: it belongs to another architecture, or contains integers where the network has
            floats, or NaN.
    """
    wanted = _state_of(module)
    weights, notes = matched(wanted, checkpoint)
    _check_fit(module, weights, checkpoint.path)
    # Old checkpoints lack the batch counters of BatchNorm, which evaluation never reads.
    load_state(module, weights, strict=False)
    return (*checkpoint.notes, *notes)


def load_backbone(module: nn.Module, checkpoint: Checkpoint, classifier: str) -> tuple[str, ...]:
    """Load a checkpoint into ``module``, in place, except a last layer for other classes.

    Linear layers with another number of outputs than in the checkpoint keep their own weights: the
    last layer, and those of auxiliary outputs. So does a last layer that the checkpoint lacks.

    Args:
        module: the network.
        checkpoint: the weights.
        classifier: name of the network's last layer, or names joined by ``+``, as in a model card.

    Returns:
        Notes on what was used.

    Raises:
        InputError: as in `load_checkpoint`, for any other layer.
    """
    wanted, layers = _state_of(module), classifier.split(TOGETHER)
    own = {each for layer in layers for each in _parameters_of(layer, wanted)}
    weights, notes = matched({name: wanted[name] for name in wanted if name not in own}, checkpoint)
    resized = _resized_linears(module, weights)
    if not own & weights.keys():
        resized += layers
        notes += (
            f"weights {checkpoint.path}: has no last layer {classifier!r}, which is newly "
            "initialised",
        )
    elif layers[0] in resized:
        n_theirs, n_ours = (len(each[f"{layers[0]}.weight"]) for each in (weights, wanted))
        notes += (
            f"weights {checkpoint.path}: trained for {n_theirs:,} classes; the last layer "
            f"{classifier!r} is newly initialised, for {n_ours:,}",
        )
    kept = {name for layer in resized for name in _parameters_of(layer, wanted)}
    weights = {**weights, **{name: wanted[name].clone() for name in kept}}
    _check_fit(module, weights, checkpoint.path)
    load_state(module, weights, strict=False)
    return (*checkpoint.notes, *notes)


def _parameters_of(layer: str, wanted: Mapping[str, Tensor]) -> set[str]:
    return {f"{layer}.weight", f"{layer}.bias"} & wanted.keys()


def _resized_linears(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the linear layers that have another number of outputs in a checkpoint."""
    linears = {
        name: part.get_parameter("weight")
        for name, part in module.named_modules()
        if is_logit_layer(part) and f"{name}.weight" in weights
    }
    shapes = {name: (weights[f"{name}.weight"].shape, linears[name].shape) for name in linears}
    return [
        name for name, (theirs, ours) in shapes.items() if theirs[1:] == ours[1:] and theirs != ours
    ]


def load_state(module: nn.Module, weights: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load weights that were saved by this version of ``module``, in place.

    A plain dict lacks the versions of the modules. Without them, some modules refuse to load
    (MNASNet) and others treat the names as older ones.
    """
    state = OrderedDict(weights)
    versions = getattr(module.state_dict(), "_metadata", {})
    state._metadata = versions  # type: ignore[attr-defined]  # torch looks for them here
    module.load_state_dict(state, strict=strict)


def save_weights(module: nn.Module) -> bytes:
    """The state dict of ``module`` as a safetensors file."""
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    tensors = {name: cpu_copy(tensor) for name, tensor in _state_of(module).items()}
    data: bytes = save(tensors)
    return data


def weights_hash(module: nn.Module) -> str:
    """`tensors_hash` of the state dict."""
    return tensors_hash(_state_of(module))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes), independent of the file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_plain(tensor).flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_fit(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    wanted = module.state_dict()
    for name in (name for name in wanted if name in weights):
        _check_kind(name, weights[name], wanted[name], path)
    _check_classes(module, weights, path)
    for name, tensor in wanted.items():
        if name not in weights and not name.endswith("num_batches_tracked"):
            raise InputError(_other_network(path, f"{name!r} is missing from it", wanted, weights))
        if name in weights and weights[name].shape != tensor.shape:
            found = f"{name!r} is {_size(weights[name])} in it, {_size(tensor)} in the network"
            raise InputError(_other_network(path, found, wanted, weights))
    # The order in a safetensors file has no meaning.
    for name in sorted(weights.keys() - wanted.keys()):
        found = f"the network has no {name!r} {_size(weights[name])}"
        raise InputError(_other_network(path, found, wanted, weights))
    for name, tensor in weights.items():
        if tensor.is_floating_point() and (n_bad := int(tensor.isnan().sum())):
            raise InputError(
                f"weights {path}: {n_bad:,} of {tensor.numel():,} numbers in {name!r} are NaN; use "
                "a checkpoint of a training that did not diverge, with a classifier"
            )


def _check_kind(name: str, found: Tensor, wanted: Tensor, path: str | Path) -> None:
    """Refuse types whose conversion would change the trained numbers."""
    if wanted.is_floating_point():
        expected, is_same = "float16, bfloat16, float32 or float64", found.dtype in _FLOATS
    elif wanted.is_complex():
        expected, is_same = "complex", found.is_complex()
    else:
        expected = str(wanted.dtype).removeprefix("torch.")
        is_same = not (found.is_floating_point() or found.is_complex())
    kind = str(found.dtype).removeprefix("torch.")
    if found.is_meta or found.is_quantized or found.layout is not torch.strided:
        is_same = False
        layout = "" if found.layout is torch.strided else f" ({found.layout})"
        kind = "without data" if found.is_meta else kind + layout
    if not is_same and not name.endswith("num_batches_tracked"):
        is_integer = not (found.is_floating_point() or found.is_complex())
        hint = "quantised weights are useless without their scales, " if is_integer else ""
        raise InputError(
            f"weights {path}: {name!r} is {kind}, expected {expected}; {hint}save the weights in "
            "the types of the network"
        )


def _check_classes(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a specific error if only the number of rows of one linear layer differs."""
    wanted = module.state_dict()
    differing = {
        name for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    }  # fmt: skip
    if wanted.keys() - weights.keys() or weights.keys() - wanted.keys() or not differing:
        return
    last = [
        (name, weights[f"{name}.weight"].shape, layer.weight.shape)
        for name, layer in module.named_modules()
        if is_logit_layer(layer) and f"{name}.weight" in differing
    ]
    parameters = {f"{name}.{each}" for name, *_ in last for each in ("weight", "bias")}
    if differing <= parameters and all(found[1:] == own[1:] for _, found, own in last):
        name, found, own = last[0]
        raise InputError(
            f"weights {path}: trained for {found[0]} classes, the network is built for {own[0]} "
            f"({name!r}); use weights trained on {own[0]} classes, or data with {found[0]}"
        )


def _other_network(
    path: str | Path, found: str, wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    n_differing = len(wanted.keys() ^ weights.keys()) + sum(
        weights[name].shape != wanted[name].shape for name in wanted.keys() & weights.keys()
    )
    others = f" (the first of {n_differing} differences)" if n_differing > 1 else ""
    return (
        f"weights {path}: a checkpoint of another architecture: {found}{others}; "
        "name the network that these weights belong to"
    )


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, checked to contain only tensors."""
    state: dict[str, Tensor] = module.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"the network's state dict has {strange[0]!r}, a {type(state[strange[0]]).__name__}; "
            "expected only tensors: make it a buffer, or remove get_extra_state"
        )
    return state


def cpu_copy(tensor: Tensor) -> Tensor:
    """A copy of a tensor in the memory of the CPU."""
    return _plain(tensor).clone()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
