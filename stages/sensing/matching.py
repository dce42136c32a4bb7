"""Match the names of a checkpoint's weights with those of a network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stages.errors import InputError
from stages.sensing.checkpoint import Checkpoint, listed

_OF_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every name."""

_COUNTER = "num_batches_tracked"
"""Batch counter of BatchNorm: old checkpoints lack it, and evaluation does not read it."""

_OLD_NAMES = (
    # torchvision's DenseNet: https://github.com/pytorch/vision/pull/1293
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$"), r"\1\2"),
    # torchvision's vision transformers: https://github.com/pytorch/vision/pull/6053
    (re.compile(r"(\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
    # DataParallel or torch.compile around a part of a network.
    (re.compile(r"(^|\.)(?:module|_orig_mod)\."), r"\1"),
    # torch.nn.utils.weight_norm, which became a parametrisation.
    (re.compile(r"(^|\.)weight_g$"), r"\1parametrizations.weight.original0"),
    (re.compile(r"(^|\.)weight_v$"), r"\1parametrizations.weight.original1"),
)
"""Names of earlier versions or of wrapped parts, and the current names."""


@dataclass(frozen=True, slots=True)
class _Match:
    """A prefix in the checkpoint, and the prefix in the network that replaces it."""

    theirs: str
    ours: str


@dataclass(frozen=True, slots=True)
class _Taken:
    """Weights of a checkpoint under the network's names, and their prefix in the checkpoint."""

    prefix: str
    weights: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


def matched(
    wanted: Mapping[str, Tensor], checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a checkpoint under the names of a network, and notes on what was used.

    Names that match are used as they are. Otherwise a common prefix is removed from those of the
    checkpoint, or added if the network has one, and names of earlier versions are replaced.
    Weights that do not match are returned without the usual prefixes, for an error message.

    Raises:
        InputError: several prefixes match.
    """
    weights = checkpoint.weights
    required = [name for name in wanted if not name.endswith(_COUNTER)]
    if not required or all(name in weights for name in required):
        return weights, ()
    for named in (weights, {_current(name): value for name, value in weights.items()}):
        matches = _matches(required, named)
        fitting = [each for each in matches if _has_shapes(wanted, required, named, each[0])]
        if len(fitting) > 1:
            # The longest prefix of each selects it alone.
            prefixes = listed([each[-1].theirs.rstrip(".") for each in fitting])
            raise InputError(
                f"weights {checkpoint.path}: has this network more than once, under the prefixes "
                f"{prefixes}; choose one with --weights-key"
            )
        if found := fitting or matches:
            taken = _taken(found[0], named, wanted)
            return taken.weights, _notes(taken, checkpoint.path)
    return _without_wrappers(weights), ()


def _current(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _matches(required: list[str], weights: Mapping[str, Tensor]) -> list[list[_Match]]:
    """Every way to find all required names by replacing one prefix with another.

    Ways that use the same tensors are one list, with the shortest prefix first. The time is linear
    in the number of names, whatever they are.
    """
    found: dict[str, list[_Match]] = {}
    for ours in _common_prefixes(required):
        first, *others = (name.removeprefix(ours) for name in required)
        for name in weights:
            theirs = name.removesuffix(first)
            ends_here = name.endswith(first) and (not theirs or theirs.endswith("."))
            if ends_here and all(theirs + other in weights for other in others):
                found.setdefault(name, []).append(_Match(theirs, ours))
    return list(found.values())


def _taken(
    matches: list[_Match], weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> _Taken:
    """The weights of the first match without unknown names, else of the first match."""
    taken = []
    for match in matches:
        begins = [name for name in weights if name.startswith(match.theirs)]
        found = {match.ours + name.removeprefix(match.theirs): weights[name] for name in begins}
        taken.append(_Taken(match.theirs, found, tuple(sorted(weights.keys() - set(begins)))))
    return next((each for each in taken if each.weights.keys() <= wanted.keys()), taken[0])


def _common_prefixes(names: list[str]) -> list[str]:
    """Prefixes of all names up to each dot, the empty one first; layer names are not included.

    >>> _common_prefixes(["module.net.conv.weight", "module.net.fc.bias"])
    ['', 'module.', 'module.net.']
    """
    prefixes = [""]
    parts = names[0].split(".")[:-2]
    for n in range(1, len(parts) + 1):
        prefix = ".".join(parts[:n]) + "."
        if not all(name.startswith(prefix) for name in names):
            break
        prefixes.append(prefix)
    return prefixes


def _has_shapes(
    wanted: Mapping[str, Tensor], required: list[str], weights: Mapping[str, Tensor], match: _Match
) -> bool:
    return all(
        weights[match.theirs + name.removeprefix(match.ours)].shape == wanted[name].shape
        for name in required
    )


def _notes(taken: _Taken, path: str) -> tuple[str, ...]:
    """Notes on a match; none if only a wrapper's prefix was removed."""
    prefix = taken.prefix
    for wrapper in _OF_WRAPPERS:
        prefix = prefix.replace(wrapper, "")
    if not prefix and not taken.left_out:
        return ()
    left = f"; left out {listed(taken.left_out)}" if taken.left_out else ""
    return (f"weights {path}: used the names that begin with {taken.prefix!r}{left}",)


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    start = 0
    while wrapper := _at(start, weights):
        start += len(wrapper)
    return {name[start:]: tensor for name, tensor in weights.items()}


def _at(start: int, weights: Mapping[str, Tensor]) -> str:
    """The wrapper's prefix that all names have at a place; empty if there is none."""
    shared = (each for each in _OF_WRAPPERS if all(n.startswith(each, start) for n in weights))
    return next(shared, "")
