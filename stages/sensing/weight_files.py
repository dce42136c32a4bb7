"""Weight files: safetensors, sharded checkpoints, and torch files that need not run code."""

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from pipeline.memory import limit_bytes
from stages.errors import DataNotFoundError, InputError
from stages.sensing.weight_archive import check_archive
from store.errors import first_line
from store.locations import storage_at

_IN_FOLDER = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Files to look for in a folder of weights, as named by Hugging Face."""

_MOST_INDEX_BYTES = 64 * 2**20


def read_weight_file(path: str | Path) -> object:
    """The content of a weight file: for safetensors a dict of tensors, else the saved object.

    Args:
        path: a safetensors file, a file of ``torch.save``, the ``.index.json`` of a sharded
            checkpoint, a folder that holds one of these under its usual name, or the URL of a
            safetensors file in a store.

    Raises:
        DataNotFoundError: no such file.
        InputError: the file contains code, is damaged, or unpacks to more bytes than it has.
    """
    try:
        return _read_stored(str(path)) if "://" in str(path) else _read_local(Path(path))
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"weights {path}: cannot be read ({error.strerror or error}); check its path and "
            "permissions"
        ) from error


def _read_stored(url: str) -> object:
    folder, _, name = url.rpartition("/")
    storage = storage_at(folder)
    _check_size(storage.size(name) or 0, url)
    try:
        return load(storage.read(name))
    except SafetensorError as error:
        raise InputError(f"weights {url}: not a complete safetensors file ({error})") from error


def _read_local(path: Path) -> object:
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        found = "not a regular file" if path.exists() else "no such file"
        raise DataNotFoundError(f"weights {path}: {found}; check the path")
    if path.suffix.lower() == ".json":
        return _read_sharded(path)
    _check_size(path.stat().st_size, path)
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def _file_in(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDER if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"weights {folder}: the folder has no {_IN_FOLDER[0]} or {_IN_FOLDER[2]}; give the file"
        )
    return found


def _check_size(n_bytes: int, path: str | Path) -> None:
    """Refuse files that would fill the memory; a sparse file can have any size."""
    most = limit_bytes() // 2
    if n_bytes > most:
        raise InputError(
            f"weights {path}: {n_bytes:,} bytes, expected at most {most:,}, half of the "
            "memory that this process may use; save only the state dict, without the optimiser"
        )


def _is_safetensors(path: Path) -> bool:
    """Check by name, or by content: the length of a header, then the header, which is JSON."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and not head.startswith(b"PK")


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights {path}: not a complete safetensors file ({error})") from error


def _read_sharded(path: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, each from the file given there."""
    weights: dict[str, Tensor] = {}
    names = _weight_map(path)
    files = [path.parent / file for file in sorted(set(names.values()))]
    if folder := next((file for file in files if file.is_dir()), None):
        raise InputError(f"weights {path}: lists {folder.name!r}, a folder, expected a file")
    _check_size(sum(file.stat().st_size for file in files if file.is_file()), path)
    for file in files:
        if not file.exists():
            raise DataNotFoundError(
                f"weights {path}: lists {file.name}, which is not in the same folder; copy the "
                "whole folder again"
            )
        content = _read_local(file)
        held = content if isinstance(content, Mapping) else {}
        for name in (name for name, place in names.items() if place == file.name):
            if not isinstance(held.get(name), Tensor):
                raise InputError(
                    f"weights {path}: lists {name!r} in {file.name}, which does not contain it; "
                    "copy the whole folder again"
                )
            weights[name] = held[name]
    return weights


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name; every file is in the folder of the index."""
    try:
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError(f"larger than {_MOST_INDEX_BYTES:,} bytes")
        names = json.loads(path.read_bytes())["weight_map"]
        if not isinstance(names, dict) or not names:
            raise ValueError("an empty weight_map")
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise InputError(
            f"weights {path}: expected the index of a sharded checkpoint, a JSON object with "
            f"'weight_map', found {first_line(error)}; copy it again"
        ) from error
    for file in names.values():
        if not _is_beside(file):
            raise InputError(
                f"weights {path}: names the file {str(file)[:80]!r}, expected the name of a "
                ".safetensors or .bin file in the same folder"
            )
    return names


def _is_beside(file: object) -> bool:
    """Whether it is a plain file name: no folder, no drive, no further index."""
    return (
        isinstance(file, str)
        and file not in ("", "..")
        and len(file) < 256
        and PurePosixPath(file).name == file == PureWindowsPath(file).name
        and "\0" not in file
        and not file.lower().endswith(".json")
    )


def _read_torch(path: Path) -> object:
    try:
        check_archive(path)
        with warnings.catch_warnings():
            # torch warns of an unusual pickle protocol; the result is checked below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_storages(content, path)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise _damaged(path, error) from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise _refused_code(path, code[1] if code else "") from error
    except (
        # Errors of the parser of the old format for bytes that are not a pickle.
        RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
        AssertionError, MemoryError, OverflowError, RecursionError, struct.error,
        NotImplementedError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error
    return content


def _check_storages(content: object, path: Path) -> None:
    """Refuse tensors that claim more memory than the file has bytes."""
    n_bytes: dict[int, int] = {}
    seen, left = set(), [content]
    while left:  # a pickle may contain a dictionary many times, or within itself
        each = left.pop()
        if isinstance(each, Mapping) and id(each) not in seen:
            seen.add(id(each))
            left.extend(each.values())
        elif isinstance(each, Tensor) and each.layout is torch.strided and not each.is_meta:
            n_bytes[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    if sum(n_bytes.values()) > path.stat().st_size:
        raise ValueError("its tensors are larger than the file")


def _refused_code(path: Path, call: str) -> InputError:
    return InputError(
        f"weights {path}: refused, loading it would run code{f' ({call})' if call else ''}; "
        "expected only tensors: save module.state_dict(), preferably as .safetensors"
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"weights {path}: expected a state dict saved by torch, found a damaged file or another "
        f"format ({first_line(error)}); save module.state_dict() again, preferably as .safetensors"
    )
