"""Training of the head H: a loop of epochs over gradients that stay in factors on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import torch as safetensors_torch
from torch import Tensor
from torch.nn import functional

from pipeline.stage import Tick
from stages.errors import InputError, StageError
from stages.introspection.head import Head, HeadSpec, head_bytes
from stages.reflection.rank_one import RankOneGradient

COLLAPSED_SHARE = 0.98
"""A loss above this share of ``ln N``, the loss of a uniform guess, has learned nothing."""

_EVALUATION_ROWS = 8192

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HeadParams:
    """How a head is trained; the defaults are the paper's (appendix C.1), batch size is ours.

    Attributes:
        epochs: passes over the training rows.
        batch_rows: rows of a step; the last batch of an epoch may be smaller.
        learning_rate: of the first epochs; times ``decay`` at each of ``milestones``.
        milestones: shares of the epochs, 60, 120 and 160 of 200.
        momentum, weight_decay: of SGD.
        seed: of the initial weights, the order of the rows and the dropout.
    """

    epochs: int = 200
    batch_rows: int = 128
    learning_rate: float = 0.1
    decay: float = 0.2
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    momentum: float = 0.9
    weight_decay: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_rows < 1 or self.seed < 0:
            raise InputError(
                "head training: expected epochs >= 1, batch rows >= 1 and seed >= 0, found "
                f"{self.epochs}, {self.batch_rows} and {self.seed}"
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


@dataclass(slots=True)
class HeadState:
    """A head in training and its optimiser, both changed in place by every epoch."""

    head: Head
    optimizer: torch.optim.SGD


@dataclass(frozen=True)
class _Rows:
    """The rows that are trained on, on the device."""

    gradient: RankOneGradient[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TrainHead:
    """The loop stage that trains a head; an epoch is a unit.

    Rows with a NaN and rows with the label -1 are left out. Where ``spec.M`` is None it becomes
    the mean over the remaining rows of the largest logit (appendix C.4.1), whatever the loss, and
    the facts record it.

    Args:
        features: input of the sensing network's last layer, shape ``(n, d)``.
        logits: its output, shape ``(n, N)``.
        labels: integers, shape ``(n,)``; -1 is unknown.
        spec: of the head.
        params: of the training.
        device: where everything lies: ``cpu``, ``cuda:0``.
    """

    features: NDArray[np.floating[Any]]
    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    spec: HeadSpec
    params: HeadParams = field(default_factory=HeadParams)
    device: str = "cpu"

    name = "train-head"
    version = 1
    unit_name = "epoch"

    def __post_init__(self) -> None:
        n = len(self.labels)
        expected = ((n, self.spec.feature_dim), (n, self.spec.n_classes), (n,))
        found = (self.features.shape, self.logits.shape, self.labels.shape)
        if found != expected:
            raise InputError(
                "head training: expected features, logits and labels of shapes "
                f"{expected}, found {found}"
            )
        if self.rows_per_unit == 0:
            raise InputError(
                f"head training: expected labelled rows without NaN, found none among {n}; "
                "train on a split that has labels"
            )
        if int(self.labels.max()) >= self.spec.n_classes:
            raise InputError(
                f"head training: expected labels below {self.spec.n_classes}, "
                f"found {int(self.labels.max())}"
            )

    @cached_property
    def is_trained_on(self) -> NDArray[np.bool_]:
        """Which rows count: labelled, and finite in features and logits; shape ``(n,)``."""
        is_finite = np.isfinite(self.features).all(axis=1) & np.isfinite(self.logits).all(axis=1)
        mask: NDArray[np.bool_] = is_finite & (self.labels >= 0)
        return mask

    @cached_property
    def full_spec(self) -> HeadSpec:
        """The spec with ``M`` filled in."""
        if self.spec.M is not None:
            return self.spec
        largest = self.logits[self.is_trained_on].max(axis=1)
        return self.spec.with_M(float(largest.mean(dtype=np.float64)))

    @property
    def n_units(self) -> int:
        """Epochs."""
        return self.params.epochs

    @cached_property
    def rows_per_unit(self) -> int:
        """Rows of an epoch."""
        return int(self.is_trained_on.sum())

    def start(self) -> HeadState:
        """A fresh head, seeded."""
        return self._state(_seeded(lambda: Head(self.full_spec), self.params.seed, self.device))

    def step(self, state: HeadState, unit: int, tick: Tick) -> dict[str, float]:
        """Train one epoch in place.

        The order of the rows and the dropout come from ``(seed, unit)`` alone, so an epoch after
        a resume is the same epoch.

        Returns:
            ``loss`` and ``accuracy``, means over the epoch's rows as they were seen.

        Raises:
            StageError: the loss is no number any more.
        """
        for group in state.optimizer.param_groups:
            group["lr"] = self.params.learning_rate_at(unit)
        order = np.random.default_rng([self.params.seed, unit]).permutation(len(self._rows))
        rows = torch.from_numpy(order).to(self.device)
        state.head.train()
        loss, n_correct = _seeded(
            lambda: self._epoch(state, rows, tick), _mixed(self.params.seed, unit), self.device
        )
        if not math.isfinite(loss):
            raise StageError(
                f"head training: the loss of epoch {unit + 1} is {loss}; lower the learning rate"
            )
        return {"loss": loss / len(rows), "accuracy": n_correct / len(rows)}

    def save(self, state: HeadState) -> bytes:
        """Weights and momentum, as safetensors."""
        tensors = dict(state.head.state_dict())
        for name, parameter in state.head.named_parameters():
            momentum = state.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        kept = {name: value.cpu().contiguous() for name, value in tensors.items()}
        return bytes(safetensors_torch.save(kept))

    def load(self, data: bytes) -> HeadState:
        """The state that `save` gave; its next epochs are those of an uninterrupted run."""
        tensors = safetensors_torch.load(data)
        head = Head(self.full_spec)
        head.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("momentum.")})
        state = self._state(head)
        for name, parameter in state.head.named_parameters():
            momentum = tensors.get(f"momentum.{name}")
            if momentum is not None:
                state.optimizer.state[parameter]["momentum_buffer"] = momentum.to(self.device)
        return state

    def finish(self, state: HeadState) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The weights as a file, and what was trained.

        Raises:
            StageError: the head has collapsed: it has learned nothing beyond a constant.
        """
        loss, accuracy, n_predicted = self._evaluate(state.head)
        self._refuse_collapse(loss, n_predicted)
        facts = {
            "spec": self.full_spec.to_dict(),
            "params": {**asdict(self.params), "milestones": list(self.params.milestones)},
            "train_loss": loss,
            "train_accuracy": accuracy,
            "train_rows": self.rows_per_unit,
            "excluded_rows": len(self.labels) - self.rows_per_unit,
        }
        return {"weights.safetensors": head_bytes(state.head)}, facts

    @cached_property
    def _rows(self) -> _Rows:
        kept = self.is_trained_on
        features, logits = (
            torch.from_numpy(np.ascontiguousarray(array[kept], np.float32)).to(self.device)
            for array in (self.features, self.logits)
        )
        labels = torch.from_numpy(self.labels[kept].astype(np.int64)).to(self.device)
        return _Rows(self.full_spec.gradient(features, logits), labels)

    def __getstate__(self) -> dict[str, Any]:
        # What is cached can be made again, and tensors on a device cannot travel.
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _state(self, head: Head) -> HeadState:
        head.to(self.device)
        optimizer = torch.optim.SGD(
            head.parameters(),
            lr=self.params.learning_rate,
            momentum=self.params.momentum,
            weight_decay=self.params.weight_decay,
            fused=True,
        )
        return HeadState(head, optimizer)

    def _epoch(self, state: HeadState, rows: Tensor, tick: Tick) -> tuple[float, int]:
        """Sum of the losses, and how many were right, over an epoch in the given order."""
        total = torch.zeros((), device=self.device)
        n_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in torch.split(rows, self.params.batch_rows):
            labels = self._rows.labels[batch]
            logits = state.head(self._rows.gradient.take(batch))
            loss = functional.cross_entropy(logits, labels)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            state.optimizer.step()
            total += loss.detach() * len(batch)
            n_correct += (logits.detach().argmax(dim=1) == labels).sum()
            tick(len(batch))
        return float(total), int(n_correct)

    @torch.inference_mode()
    def _evaluate(self, head: Head) -> tuple[float, float, int]:
        """Mean loss, accuracy, and how many classes are ever predicted, on the training rows."""
        head.eval()
        total, n_correct, predicted = 0.0, 0, set[int]()
        for start in range(0, len(self._rows), _EVALUATION_ROWS):
            rows = slice(start, start + _EVALUATION_ROWS)
            labels, logits = self._rows.labels[rows], head(self._rows.gradient.take(rows))
            prediction = logits.argmax(dim=1)
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            n_correct += int((prediction == labels).sum())
            predicted.update(torch.unique(prediction).tolist())
        return total / len(self._rows), n_correct / len(self._rows), len(predicted)

    def _refuse_collapse(self, loss: float, n_predicted: int) -> None:
        limit = COLLAPSED_SHARE * math.log(self.spec.n_classes)
        is_constant = n_predicted == 1 and len(torch.unique(self._rows.labels)) > 1
        if loss < limit and not is_constant:
            return
        decay = min(5e-4, self.params.weight_decay / 10)
        what = "it predicts one class for every row" if is_constant else "it has learned nothing"
        raise StageError(
            f"head: collapsed after {self.params.epochs} epochs: {what} (training loss {loss:.4f}, "
            f"a uniform guess has {math.log(self.spec.n_classes):.4f}); lower the weight decay "
            f"(now {self.params.weight_decay:g}; try {decay:g}), take fewer layers "
            f"(now {len(self.spec.layers)}) or more epochs"
        )


def _seeded(work: Callable[[], _T], seed: int, device: str) -> _T:
    """Do the work with torch's generators seeded, and put them back after it."""
    used = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=used):
        torch.manual_seed(seed)
        return work()


def _mixed(seed: int, unit: int) -> int:
    """One seed from two numbers."""
    return int(np.random.SeedSequence([seed, unit]).generate_state(1)[0])
