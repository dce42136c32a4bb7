"""Torch's own losses, for gradients by autograd; `stages.reflection.losses` has closed forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.reflection.losses import checked_loss

_ELEMENT_WISE: dict[str, Callable[[], nn.Module]] = {
    "mse": nn.MSELoss,
    "mse-m": nn.MSELoss,
    "bce": nn.BCEWithLogitsLoss,
    "l1": nn.L1Loss,
    "l1-m": nn.L1Loss,
    "smooth-l1": nn.SmoothL1Loss,
    "smooth-l1-m": nn.SmoothL1Loss,
}


def objective(loss: str, logits: Tensor, classes: Tensor, *, M: float | None = None) -> Tensor:
    """Torch's own loss of one sample against the classes that are switched on.

    Args:
        loss: a name in `stages.reflection.losses.LOSSES`.
        logits: shape ``(N,)``.
        classes: shape ``(N,)``, 1 for a class that is on and 0 for one that is off.
        M: the target's value of a class that is on, for the ``-m`` losses.

    Returns:
        A scalar, ready for a backward pass.
    """
    chosen = checked_loss(loss, M=M, variant="single-pass")
    batch = logits[None]
    if loss == "ce":
        return _scalar(nn.CrossEntropyLoss()(batch, classes[None].to(logits.dtype)))
    if loss in ("nll", "nll-logsoftmax"):
        scores = batch if loss == "nll" else functional.log_softmax(batch, dim=1)
        # NLLLoss takes one class index; a target of several classes is the sum of their losses.
        everyone = torch.arange(len(logits), device=logits.device)
        each = nn.NLLLoss(reduction="none")(scores.expand(len(logits), -1), everyone)
        return _scalar((each * classes).sum())
    on = float(M or 0.0) if chosen.on is None else chosen.on
    target = chosen.off + (on - chosen.off) * (classes > 0).to(logits.dtype)
    if loss in ("soft-margin", "soft-margin-01"):
        # nn.SoftMarginLoss, log(1 + exp(-t z)), by another of torch's own functions: the class
        # has no batching rule for vmap and overflows for large logits.
        return -functional.logsigmoid(target * logits).mean()
    return _scalar(_ELEMENT_WISE[loss]()(batch, target[None]))


def _scalar(value: Tensor) -> Tensor:
    """The value itself: calls of modules are untyped."""
    return value
