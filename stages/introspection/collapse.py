"""Heads that have collapsed: they predict a constant, or have learned nothing."""

from __future__ import annotations

import math

from torch import Tensor

from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec

COLLAPSED_SHARE = 0.98
"""A head with a loss above this fraction of ``ln N``, the loss of a uniform guess, is collapsed,"""

TIMES_CHANCE = 1.5
"""unless its accuracy is at least this multiple of the share of the largest class."""


def why_collapsed(loss: float, accuracy: float, n_predicted: int, counts: Tensor) -> str:
    """Why a head counts as collapsed; empty if it does not.

    Args:
        loss: mean cross entropy on the training rows.
        accuracy: accuracy on them.
        n_predicted: number of classes that it predicts for them.
        counts: number of training rows of each class, shape ``(N,)``.
    """
    uniform, chance = math.log(len(counts)), float(counts.max()) / int(counts.sum())
    is_constant = n_predicted == 1 and int((counts > 0).sum()) > 1
    is_blank = loss >= COLLAPSED_SHARE * uniform
    if not is_constant and not (is_blank and accuracy < TIMES_CHANCE * chance):
        return ""
    what = "it predicts one class for every row" if is_constant else "it has learned nothing"
    return f"{what} (training loss {loss:.4f}, a uniform guess has {uniform:.4f})"


def against_collapse(spec: HeadSpec, params: HeadParams) -> str:
    """What to change so that a head does not collapse."""
    decay, n_layers = params.weight_decay, len(spec.layers)
    lower = f"lower the weight decay (now {decay:g}; try {min(5e-4, decay / 10):g})"
    ways = [lower] if decay else []
    ways += [f"use fewer layers (now {n_layers})"] if n_layers else []
    return ", ".join([*ways, "train for more epochs"])
