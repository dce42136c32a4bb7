"""Checkpoints: find the state dict in a file, among what training scripts store around it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from stages.errors import InputError
from stages.sensing.weight_files import read_weight_file

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training scripts store the state dict; the first one found is used."""

_MOST_LEVELS = 8
"""Maximum depth of nested dictionaries; one in a file may contain itself."""

_MOST_LISTED = 5


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state dict as stored in a file.

    Attributes:
        path: file or URL, for messages.
        weights: name -> tensor, on the CPU.
        notes: messages on what was chosen among several entries.
    """

    path: str
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, key: str | None = None) -> Checkpoint:
    """Read the state dict in a file, inside the dictionaries in which training scripts store it.

    Args:
        path: a safetensors file, a file of ``torch.save``, the ``.index.json`` of a sharded
            checkpoint or a folder that contains one, or the URL of a safetensors file in a store.
        key: the entry to use if the file holds several state dicts, or the prefix of the names to
            use (``teacher`` for ``teacher.conv1.weight``).

    Raises:
        DataNotFoundError: no such file.
        InputError: the file contains code, is damaged, unpacks to more bytes than it has, or has no
            state dict.
    """
    weights, notes = _state_dict(read_weight_file(path), str(path), key)
    return Checkpoint(str(path), weights, notes)


def _state_dict(
    content: object, path: str, key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The requested state dict, or the usual one, and notes on the choice."""
    if not isinstance(content, Mapping):
        raise _no_state_dict(path, f"found {type(content).__name__}")
    if key is not None:
        return _chosen(content, path, key)
    levels = _levels(content)
    notes = []
    for (_, outer), (wrapper, _) in pairwise(levels):
        if others := [name for name in _entries(outer) if name != wrapper]:
            notes.append(
                f"weights {path}: used the entry {wrapper!r}; the file also holds "
                f"{listed(others)}: choose with --weights-key"
            )
    return _tensors(levels[-1][1], path), tuple(notes)


def _levels(content: Mapping[object, object]) -> list[tuple[str, Mapping[object, object]]]:
    """A dictionary and those inside it under the usual keys, from the outside to the inside."""
    levels = [("", content)]
    while len(levels) < _MOST_LEVELS:
        inner = levels[-1][1]
        found = ((key, inner.get(key)) for key in _WRAPPERS)
        level = next(((key, each) for key, each in found if isinstance(each, Mapping)), None)
        if level is None:
            break
        levels.append(level)
    return levels


def _chosen(
    content: Mapping[object, object], path: str, key: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The entry ``key`` at any depth within the usual wrappers, or the names with that prefix.

    A note says which entry or prefix was used.
    """
    known: list[str] = []
    outer: list[str] = []
    for wrapper, level in _levels(content):
        outer += [wrapper] if wrapper else []
        entry = level.get(key)
        if isinstance(entry, Mapping):
            inner = _levels(entry)
            keys = [*outer, key, *(name for name, _ in inner[1:])]
            note = f"weights {path}: used the entry {_of(keys)}"
            return _tensors(inner[-1][1], path), (note,)
        begins = f"{key}."
        found: dict[object, object] = {
            name.removeprefix(begins): value
            for name, value in level.items()
            if isinstance(name, str) and name.startswith(begins)
        }
        if found:
            place = f" in the entry {_of(outer)}" if outer else ""
            note = f"weights {path}: used the names that begin with {begins!r}{place}"
            return _tensors(found, path), (note,)
        known += [*_entries(level), *_first_parts(level)]
    raise InputError(
        f"weights {path}: has no entry {key!r}, and no names that begin with it; "
        f"found {listed(known) or 'no state dict'}"
    )


def _of(keys: Sequence[str]) -> str:
    """Nested keys for a message, given from the outside to the inside.

    >>> _of(["model", "ema"])
    "'ema' of 'model'"
    """
    return " of ".join(repr(key) for key in reversed(keys))


def _entries(content: Mapping[object, object]) -> list[str]:
    """Keys whose value is a state dict, or contains one."""
    return [
        name
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Mapping) and _holds_tensors(value)
    ]


def _holds_tensors(content: Mapping[object, object]) -> bool:
    inner = _levels(content)[-1][1]
    return bool(inner) and all(isinstance(value, Tensor) for value in inner.values())


def _first_parts(content: Mapping[object, object]) -> list[str]:
    """The parts before the first dot of the names of tensors."""
    names = (n for n, value in content.items() if isinstance(n, str) and isinstance(value, Tensor))
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _tensors(content: Mapping[object, object], path: str) -> dict[str, Tensor]:
    """The content as name -> tensor, checked."""
    weights: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            entries = _entries(content)
            hint = f", and the state dicts {listed(entries)}" if entries else ""
            way = "choose with --weights-key" if entries else "save module.state_dict()"
            raise _no_state_dict(
                path, f"found {str(name)[:80]!r} is {type(value).__name__}{hint}", way
            )
        weights[name] = value
    if not weights:
        raise _no_state_dict(path, "found nothing")
    return weights


def _no_state_dict(path: str, found: str, way: str = "save module.state_dict()") -> InputError:
    return InputError(f"weights {path}: expected a state dict (name -> tensor), {found}; {way}")


def listed(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    shown = ", ".join(repr(name[:80]) for name in names[:_MOST_LISTED])
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")
