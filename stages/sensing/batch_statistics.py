"""Batch norm with the mean and variance of groups of images, in place of the running ones.

A network in training mode does this with the images of a batch. Here only batch norm does it: all
other layers stay in eval mode, and the running statistics are neither used nor updated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.errors import InputError
from stages.sensing.probe import Answer, disagreement

Vectors = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps pixels ``[n, 3, H, W]`` of one group to features ``[n, d]`` and logits ``[n, N]``."""

Grouped = Callable[[Vectors, Tensor, int], tuple[Tensor, Tensor]]
"""Features and logits of pixels of several groups of a given size."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def use_batch_statistics(network: nn.Module, name: str) -> None:
    """Remove the running statistics of all layers of batch norm, in place.

    Without them, torch normalises by the statistics of the batch in eval mode too.

    Args:
        network: a network with layers of batch norm.
        name: its name, for the message.

    Raises:
        InputError: it has none.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        raise InputError(
            f"network {name}: has no batch norm, expected some for --batch-statistics: leave out "
            "the option"
        )
    for norm in norms:
        for buffer in _BUFFERS:
            setattr(norm, buffer, None)
        norm.track_running_stats = False


def in_turn(vectors: Vectors, pixels: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Features and logits of pixels, with one pass for each group of ``n_rows`` images."""
    parts = [vectors(group) for group in torch.split(pixels, n_rows)]
    features, logits = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(logits)


def at_once(vectors: Vectors, pixels: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The same in one pass for all whole groups; the last group may be shorter.

    It raises what ``torch.vmap`` raises for a network that cannot be vectorised.
    """
    n_whole = len(pixels) // n_rows * n_rows
    if n_whole <= n_rows:
        return in_turn(vectors, pixels, n_rows)
    grouped = pixels[:n_whole].reshape(-1, n_rows, *pixels.shape[1:])
    features, logits = (found.flatten(0, 1) for found in torch.vmap(vectors)(grouped))
    if n_whole == len(pixels):
        return features, logits
    rest = vectors(pixels[n_whole:])
    return torch.cat([features, rest[0]]), torch.cat([logits, rest[1]])


def fastest(vectors: Vectors, pixels: Tensor) -> Grouped:
    """`at_once` if it gives the same output for groups as large as ``pixels``, else `in_turn`."""
    twice = torch.cat([pixels, 0.5 * pixels])
    expected = Answer(*in_turn(vectors, twice, len(pixels)))
    try:
        found = Answer(*at_once(vectors, twice, len(pixels)))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # torch.vmap cannot follow every network, and its errors have many types
        return in_turn
    return in_turn if disagreement(found, expected) else at_once


def check_groups(vectors: Vectors, pixels: Tensor, n_rows: int, name: str) -> None:
    """Raise ``InputError`` if batch norm has no variance within a group, such as a single image."""
    try:
        vectors(pixels[:n_rows])
    except ValueError as error:
        raise InputError(
            f"{name}: cannot compute a group of {n_rows} with its own batch statistics ({error}): "
            f"use larger groups, such as --batch-statistics {2 * n_rows}"
        ) from error
