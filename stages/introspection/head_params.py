"""Training parameters of a head, without what it reads and without the machine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from stages.errors import InputError

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class HeadParams:
    """Training parameters of a head. Defaults are the paper's (appendix C.1), except batch size.

    Attributes:
        epochs: number of passes over the training rows.
        batch_rows: rows per step; the last batch of an epoch may be smaller.
        learning_rate: initial learning rate; multiplied by ``decay`` at each of ``milestones``.
        milestones: fractions of the epochs: 60, 120 and 160 of 200.
        momentum, weight_decay: parameters of SGD.
        seeds: one head is trained per seed, which sets initial weights, row order and dropout.
        precision: ``bf16`` multiplies in bfloat16; weights, momentum and predictions are float32.
    """

    epochs: int = 200
    batch_rows: int = 128
    learning_rate: float = 0.1
    decay: float = 0.2
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    momentum: float = 0.9
    weight_decay: float = 5e-3
    seeds: tuple[int, ...] = (0,)
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_rows < 1:
            raise InputError(
                "head training: expected epochs >= 1 and batch rows >= 1, found "
                f"{self.epochs} and {self.batch_rows}"
            )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"head training: expected different seeds >= 0, found {list(self.seeds)}"
            )
        if self.precision not in PRECISIONS:
            raise InputError(
                f"head training: expected precision {' or '.join(PRECISIONS)}, "
                f"found {self.precision!r}"
            )
        is_number = math.isfinite(self.learning_rate) and math.isfinite(self.weight_decay)
        is_fit = self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.momentum < 1
        if not (is_number and is_fit):
            raise InputError(
                "head training: expected learning rate > 0, weight decay >= 0, momentum in [0, 1); "
                f"found {self.learning_rate}, {self.weight_decay}, {self.momentum}"
            )

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones)
        return self.learning_rate * self.decay**passed

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form."""
        return {**asdict(self), "milestones": list(self.milestones), "seeds": list(self.seeds)}
