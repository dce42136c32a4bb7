"""The losses of Table 7 of Introspective Learning, as closed-form derivatives to the logits.

At the last layer ``z = W f + b`` every loss ``J`` has the gradient ``dJ/dW = δ ⊗ f`` with
``δ = dJ/dz``. This module computes ``δ``; `stages.reflection.rank_one` computes the gradient.

There are three readings of "the gradient against every class" (Eqs. 5 and 6 of the paper). Pass
``I`` is the backward pass with the target on for class ``I`` alone, and ``D[I, j]`` its ``δ_j``:

- ``single-pass``: one pass with the target on for every class (Eq. 6), the default;
- ``stack``: ``δ_j = D[j, j]``, the row of ``W`` that belongs to the class of the pass (Eq. 5);
- ``sum``: ``δ_j = Σ_I D[I, j]``, the sum of the ``N`` passes.

The single pass equals the sum if ``J`` is linear in the target (``ce``, ``nll``), and the stack if
``J`` is separable over the classes (all others); otherwise they are different features. Reductions
are PyTorch's ``mean`` for one sample: element-wise losses divide by ``N``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from stages.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["single-pass", "stack", "sum"]
VARIANTS: tuple[Variant, ...] = ("single-pass", "stack", "sum")

ArrayT = TypeVar("ArrayT", "NDArray[np.floating[Any]]", "Tensor")
"""Numpy arrays or torch tensors; results have the type, dtype and device of the arguments."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of Table 7: its name here and its target.

    ``off`` and ``on`` are the target's values for the other classes and for the class in question;
    ``on`` is None if it is ``M``, the mean over the training set of the largest logit (appendix
    C.4.1 of the paper).
    """

    name: str
    off: float = 0.0
    on: float | None = 1.0

    @property
    def needs_M(self) -> bool:  # noqa: N802 - the paper's name
        """Whether the target is ``M·1_N`` instead of ``1_N``."""
        return self.on is None


# Formulas are δ_j of the single pass. The torch.nn class beside each defines loss and reduction;
# the selection of losses, and which of them take M, is that of Table 7 and appendix C.4.1.
_LOSSES = (
    Loss("ce"),  # CrossEntropyLoss: N p_j - 1
    Loss("mse-m", on=None),  # MSELoss: (2/N)(z_j - M)
    Loss("mse"),  # MSELoss: (2/N)(z_j - 1), not in Table 7
    Loss("bce"),  # BCEWithLogitsLoss: (sigmoid(z_j) - 1)/N
    Loss("l1"),  # L1Loss: sign(z_j - 1)/N
    Loss("l1-m", on=None),  # L1Loss: sign(z_j - M)/N
    Loss("smooth-l1"),  # SmoothL1Loss: clip(z_j - 1, -1, 1)/N
    Loss("smooth-l1-m", on=None),  # SmoothL1Loss: clip(z_j - M, -1, 1)/N
    Loss("nll"),  # NLLLoss on raw logits: -1
    Loss("nll-logsoftmax"),  # NLLLoss on log-softmax: N p_j - 1
    Loss("soft-margin", off=-1.0),  # SoftMarginLoss, one-hot coded -1/+1: -sigmoid(-z_j)/N
    Loss("soft-margin-01"),  # SoftMarginLoss, one-hot coded 0/1: -sigmoid(-z_j)/N
)
LOSSES: dict[str, Loss] = {loss.name: loss for loss in _LOSSES}
"""The losses of Table 7, with both readings of NLL and codings of SoftMargin, and MSE to 1."""

DEFAULT_LOSS = "mse-m"


def delta(
    loss: str, logits: ArrayT, *, M: float | None = None, variant: str = "single-pass"
) -> ArrayT:
    """Derivative of a loss to the logits of each row, ``δ = dJ/dz``.

    Args:
        loss: a name in `LOSSES`.
        logits: shape ``(n, N)``, floating point, numpy or torch. Rows of NaN stay NaN.
        M: the target's value for the losses that end in ``-m``; unused by the others.
        variant: a name in `VARIANTS`.

    Returns:
        Shape ``(n, N)``, dtype and device of ``logits``.

    Raises:
        InputError: unknown loss or variant, no finite ``M`` where one is needed, or logits that
            are not a matrix of floating-point numbers.

    >>> import numpy as np
    >>> delta("mse-m", np.array([[2.0, -1.0, 0.5]]), M=1.5).round(4).tolist()
    [[0.3333, -1.6667, -0.6667]]
    """
    chosen = checked_loss(loss, M=M, variant=variant)
    xp = array_namespace(logits)
    if logits.ndim != 2 or not xp.isdtype(logits.dtype, "real floating"):
        raise InputError(
            f"logits: expected a floating-point matrix [n, N], found {logits.dtype} of shape "
            f"{tuple(logits.shape)}; convert or reshape them"
        )
    if loss in ("ce", "nll-logsoftmax"):
        return _cross_entropy(logits, variant)
    if loss == "nll":
        return _raw_nll(logits)
    n_classes = logits.shape[1]
    derivative = _ELEMENT_WISE[loss]
    # A Python float, never a numpy float64: that one would widen float32 logits.
    total: ArrayT = derivative(xp, logits, float(M or 0.0) if chosen.on is None else chosen.on)
    if variant == "sum":
        total = total + (n_classes - 1) * derivative(xp, logits, chosen.off)
    mean: ArrayT = total / n_classes
    return mean


def checked_loss(loss: str, *, M: float | None, variant: str) -> Loss:
    """The loss with that name; raises `InputError` if loss, ``M`` and variant do not match."""
    if loss not in LOSSES:
        raise InputError(f"loss: expected one of {', '.join(LOSSES)}; found {loss!r}")
    if variant not in VARIANTS:
        raise InputError(f"variant: expected one of {', '.join(VARIANTS)}; found {variant!r}")
    chosen = LOSSES[loss]
    if chosen.needs_M and (M is None or not math.isfinite(M)):
        raise InputError(
            f"loss {loss!r}: expected M, the mean over the training set of the largest logit; "
            f"found {M}; give M, or use a loss without it, e.g. 'bce'"
        )
    return chosen


def softmax(logits: ArrayT) -> ArrayT:
    """Softmax over the last axis; the maximum of each row is subtracted to avoid overflow."""
    xp = array_namespace(logits)
    exponentials: ArrayT = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    probabilities: ArrayT = exponentials / xp.sum(exponentials, axis=-1, keepdims=True)
    return probabilities


def sigmoid(values: ArrayT) -> ArrayT:
    """``1 / (1 + exp(-x))``, computed from ``exp(-|x|)`` to avoid overflow at either end."""
    xp = array_namespace(values)
    small: ArrayT = xp.exp(-xp.abs(values))
    probabilities: ArrayT = xp.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


def _cross_entropy(logits: ArrayT, variant: str) -> ArrayT:
    """``(Σ_j t_j) p - t``: the target is a vector of weights that need not sum to one."""
    weight = 1 if variant == "stack" else logits.shape[1]
    slope: ArrayT = weight * softmax(logits) - 1
    return slope


def _raw_nll(logits: ArrayT) -> ArrayT:
    """``-t``, which is -1 in all three variants, because the loss is ``-z_I``."""
    xp = array_namespace(logits)
    constant: ArrayT = xp.where(xp.isnan(logits), logits, -xp.ones_like(logits))
    return constant


# Derivatives of the element-wise losses before the mean: (namespace, logits z, target t) -> δ.


def _squared(xp: Any, z: ArrayT, t: float) -> ArrayT:  # noqa: ARG001 - one signature for all
    return 2 * (z - t)


def _absolute(xp: Any, z: ArrayT, t: float) -> ArrayT:
    slope: ArrayT = xp.sign(z - t)  # sign(0) = 0, as in torch
    return slope


def _huber(xp: Any, z: ArrayT, t: float) -> ArrayT:
    slope: ArrayT = xp.clip(z - t, -1.0, 1.0)  # SmoothL1Loss with beta = 1
    return slope


def _binary_cross_entropy(xp: Any, z: ArrayT, t: float) -> ArrayT:  # noqa: ARG001
    # σ(z) - t, without the cancellation in σ(z) - 1 for large z.
    return (1 - t) * sigmoid(z) - t * sigmoid(-z)


def _soft_margin(xp: Any, z: ArrayT, t: float) -> ArrayT:  # noqa: ARG001
    return -t * sigmoid(-t * z)  # derivative of log(1 + exp(-t z)); zero for t = 0


_ELEMENT_WISE: dict[str, Callable[..., Any]] = {  # Any: each is generic in numpy and torch
    "mse": _squared,
    "mse-m": _squared,
    "bce": _binary_cross_entropy,
    "l1": _absolute,
    "l1-m": _absolute,
    "smooth-l1": _huber,
    "smooth-l1-m": _huber,
    "soft-margin": _soft_margin,
    "soft-margin-01": _soft_margin,
}
