"""Weights in and out: safetensors, and state dicts that torch can load without running code."""

import hashlib
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from stages.errors import DataNotFoundError, InputError
from store.storage import storage_at

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training scripts put the state dict."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into ``module``, in place; every weight must fit.

    ``path`` is a file, or the URL of a safetensors file in a store.

    Raises:
        DataNotFoundError: no such file.
        InputError: the file holds code, is damaged, or belongs to another architecture; the first
            key that differs is named.
    """
    weights = read_state_dict(path)
    _check_fit(module, weights, path)
    # Old checkpoints lack the batch counters of BatchNorm, which evaluation never reads.
    module.load_state_dict(weights, strict=False)


def save_weights(module: nn.Module) -> bytes:
    """The state dict of ``module`` as a safetensors file."""
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    tensors = {name: _plain(tensor).clone() for name, tensor in module.state_dict().items()}
    data: bytes = save(tensors)
    return data


def weights_hash(module: nn.Module) -> str:
    """sha256 over the sorted (name, dtype, shape, bytes): the same whatever file they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_plain(tensor).flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor on the CPU, without the wrappers and prefixes that training scripts add.

    Raises:
        DataNotFoundError: no such file.
        InputError: the file holds code, is damaged, or holds no state dict.
    """
    if "://" in str(path):
        return _read_stored(str(path))
    path = Path(path)
    if not path.is_file():
        raise DataNotFoundError(f"weights {path}: no such file; give a .safetensors or .pt file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _without_prefixes(_unwrapped(content, path))


def _read_stored(url: str) -> dict[str, Tensor]:
    folder, _, name = url.rpartition("/")
    try:
        return dict(load(storage_at(folder).read(name)))
    except SafetensorError as error:
        raise InputError(f"weights {url}: not a whole safetensors file ({error})") from error


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights {path}: not a whole safetensors file ({error})") from error


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns of an unusual pickle protocol; what it then makes of it is handled below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise _damaged(path, error) from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"weights {path}: refused, loading it would run code"
            f"{f' ({code[1]})' if code else ''}; expected tensors alone: "
            "save module.state_dict(), best as .safetensors"
        ) from error
    except (
        # What the parser of the old format raises at bytes that are no pickle.
        RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
        AssertionError, MemoryError, OverflowError, struct.error,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"weights {path}: expected a state dict saved by torch, found a damaged or other file "
        f"({_first_line(error)}); save module.state_dict() again, best as .safetensors"
    )


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise InputError(
            f"weights {path}: expected a state dict (name -> tensor), found "
            f"{type(content).__name__}; save module.state_dict()"
        )
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrapped(content[key], path)
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        found = f"{strange[0]!r} is {type(content[strange[0]]).__name__}" if strange else "nothing"
        raise InputError(
            f"weights {path}: expected a state dict (name -> tensor), found {found}; "
            "save module.state_dict()"
        )
    return dict(content)


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _without_prefixes(
                {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            )
    return weights


def _check_fit(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    _check_classes(module, weights, path)
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in weights and not name.endswith("num_batches_tracked"):
            raise InputError(_other_network(path, f"{name!r} is missing from it", wanted, weights))
        if name in weights and weights[name].shape != tensor.shape:
            found = f"{name!r} is {_size(weights[name])} in it, {_size(tensor)} in the network"
            raise InputError(_other_network(path, found, wanted, weights))
    # safetensors files are in no telling order.
    for name in sorted(weights.keys() - wanted.keys()):
        found = f"the network has no {name!r} {_size(weights[name])}"
        raise InputError(_other_network(path, found, wanted, weights))


def _check_classes(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Say it in so many words when only the rows of one linear layer differ."""
    wanted = module.state_dict()
    differing = {
        name for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    }  # fmt: skip
    if wanted.keys() - weights.keys() or weights.keys() - wanted.keys() or not differing:
        return
    for name, layer in module.named_modules():
        parameters = {f"{name}.weight", f"{name}.bias"} & wanted.keys()
        if isinstance(layer, nn.Linear) and parameters == differing:
            found = weights[f"{name}.weight"]
            if found.shape[1:] == layer.weight.shape[1:]:
                raise InputError(
                    f"weights {path}: trained for {found.shape[0]} classes, the network is built "
                    f"for {layer.out_features} ({name!r}); take weights trained on "
                    f"{layer.out_features} classes, or data with {found.shape[0]}"
                )


def _other_network(
    path: str | Path, found: str, wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    n_differing = len(wanted.keys() ^ weights.keys()) + sum(
        weights[name].shape != wanted[name].shape for name in wanted.keys() & weights.keys()
    )
    return (
        f"weights {path}: a checkpoint of another architecture: {found} "
        f"(the first of {n_differing} differences); name the network that these weights belong to"
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
