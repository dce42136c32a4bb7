"""Train heads: a loop of epochs over all seeds at once, with factored inputs on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import torch as safetensors_torch
from torch import Tensor
from torch.nn import functional

from pipeline.work import Tick
from stages.errors import InputError, TrainingFailedError
from stages.introspection.best_epoch import Best, Selection
from stages.introspection.collapse import against_collapse, why_collapsed
from stages.introspection.fitted_scaling import FittedScaling
from stages.introspection.head import Head, layer_names, load_head
from stages.introspection.head_params import HeadParams
from stages.introspection.head_parts import Arrays
from stages.introspection.head_spec import HeadSpec
from stages.introspection.reading import usable_rows
from stages.introspection.stacked import StackedMlp, cross_entropy
from stages.introspection.training_batches import Batches
from stages.metrics.finite import finite_rows
from stages.sensing.device import require_device

WEIGHTS_KEY = "weights.safetensors"

_EVALUATION_ROWS = 8192


@dataclass(slots=True)
class HeadState:
    """The heads in training, side by side, and their optimiser; an epoch changes all in place.

    ``best`` has the best epochs so far, if the best one is kept instead of the last.
    """

    heads: StackedMlp
    optimizer: torch.optim.SGD
    best: Best | None = None


@dataclass(frozen=True, eq=False)
class HeadTraining:
    """The loop stage that trains one head per seed; its units are epochs.

    Rows with a NaN and rows with the label -1 are left out. If ``spec.M`` is None, it is computed
    as the mean of the largest logit over the remaining rows (appendix C.4.1), whatever the loss,
    and recorded in the facts.

    Args:
        features: input of the sensing network's last layer, shape ``(n, d)``.
        logits: its output, shape ``(n, N)``.
        labels: integers, shape ``(n,)``; -1 is unknown.
        spec: specification of the heads.
        params: training parameters.
        device: device of data and heads: ``cpu``, ``cuda:0``.
        selection: rows on which the best epoch of each seed is chosen; ``None`` for the last epoch.
        further: the further arrays that the heads read, each ``(n, k)``, by name.
        keep_collapsed: keep heads that have collapsed; their seeds are a fact of the training.
    """

    features: NDArray[np.floating[Any]]
    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    spec: HeadSpec
    params: HeadParams = field(default_factory=HeadParams)
    device: str = "cpu"
    selection: Selection | None = None
    further: Arrays = field(default_factory=dict)
    keep_collapsed: bool = False

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
        """Flags of the training rows: labelled, and finite in all arrays; shape ``(n,)``."""
        return usable_rows(self.labels, self.features, self.logits, *self.further.values())

    @cached_property
    def full_spec(self) -> HeadSpec:
        """The spec with ``M`` computed, if the heads read a gradient."""
        reading = self.spec.reading.measured(self.logits[self.is_trained_on])
        return replace(self.spec, M=reading.M)

    @property
    def n_units(self) -> int:
        """Epochs."""
        return self.params.epochs

    @cached_property
    def rows_per_unit(self) -> int:
        """Number of rows of an epoch over all seeds."""
        return int(self.is_trained_on.sum())

    def start(self) -> HeadState:
        """Fresh heads, each initialised by torch after ``torch.manual_seed(seed)``."""
        state = self._state()
        for index, seed in enumerate(self.params.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = Head(self.full_spec)
            for tensor, fresh in zip(_tensors(state).values(), head.parameters(), strict=True):
                tensor[index] = fresh.detach()
        if self.selection is not None:
            state.best = Best.none_yet(_tensors(state))
        return state

    @torch.no_grad()
    def step(self, state: HeadState, unit: int, tick: Tick) -> dict[str, float]:
        """Train one epoch in place.

        Row order and dropout of a seed depend on ``(seed, unit)`` alone, so resuming repeats the
        same epochs, and other seeds only affect rounding.

        Returns:
            ``loss`` and ``accuracy``: means over the seeds and the epoch's rows, measured while
            training; ``selection``: mean accuracy of the seeds on the selection set, if there is
            one.

        Raises:
            TrainingFailedError: a loss is no longer finite.
        """
        for group in state.optimizer.param_groups:
            group["lr"] = self.params.learning_rate_at(unit)
        losses, n_correct = self._epoch(state, unit, tick)
        for seed, loss in zip(self.params.seeds, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                self._blame_rows()
                raise TrainingFailedError(
                    f"head training, seed {seed}: the loss of epoch {unit + 1} is {loss}; lower "
                    "the learning rate"
                )
        n_rows = self.rows_per_unit
        found = {
            "loss": float(losses.mean()) / n_rows,
            "accuracy": float(n_correct.double().mean()) / n_rows,
        }
        if state.best is not None:
            now = self._heads(_tensors(state))
            accuracies = [self._evaluate(head, self._selected)[1] for head in now]
            state.best.update(_tensors(state), accuracies, unit + 1)
            found["selection"] = sum(accuracies) / len(accuracies)
        return found

    def _blame_rows(self) -> None:
        """Raise ``TrainingFailedError`` if the inputs of the heads are not finite for some rows."""
        vectors = self._batches.vectors
        is_finite = finite_rows(vectors.delta, vectors.features)
        if vectors.offset is not None:
            is_finite = is_finite & finite_rows(vectors.offset)
        if bad := torch.nonzero(~is_finite).flatten().tolist():
            row = int(np.flatnonzero(self.is_trained_on)[bad[0]])
            raise TrainingFailedError(
                f"head training: the inputs of {len(bad):,} of {self.rows_per_unit:,} rows (first: "
                f"row {row}) overflow, although features and logits are finite: the cause is these "
                "rows, not the learning rate; use --reads features or another --loss"
            )

    def save(self, state: HeadState) -> bytes:
        """Weights, momentum and the best epochs so far, as safetensors."""
        tensors = {name: value.cpu().contiguous() for name, value in _tensors(state).items()}
        momentum = state.optimizer.state[state.heads.parameters].get("momentum_buffer")
        if momentum is not None:
            tensors["momentum"] = momentum.cpu()
        if state.best is not None:
            tensors |= state.best.to_tensors()
        return bytes(safetensors_torch.save(tensors))

    def load(self, data: bytes) -> HeadState:
        """The inverse of `save`; the next epochs equal those of an uninterrupted run."""
        saved, state = safetensors_torch.load(data), self._state()
        for name, tensor in _tensors(state).items():
            tensor.copy_(saved[name])
        if "momentum" in saved:
            momentum = saved["momentum"].to(self.device)
            state.optimizer.state[state.heads.parameters]["momentum_buffer"] = momentum
        if self.selection is not None:
            state.best = Best.of(saved)
        return state

    def weights(self, state: HeadState) -> bytes:
        """The weights of all seeds, as `load_head` reads them: of the last or the best epoch."""
        return self._written(_tensors(state) if state.best is None else state.best.tensors)

    def finish(self, state: HeadState) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The weights of all seeds as a file, and facts of the training.

        Raises:
            TrainingFailedError: a head has collapsed, and such heads are not kept.
        """
        weights = self.weights(state)
        counts = torch.bincount(self._stored[2], minlength=self.spec.n_classes)
        losses, accuracies, collapsed = [], [], []
        for index, seed in enumerate(self.params.seeds):
            head = load_head(self.full_spec, weights, index, device=self.device)
            loss, accuracy, n_predicted = self._evaluate(head, self._stored)
            why = why_collapsed(loss, accuracy, n_predicted, counts)
            if why and not self.keep_collapsed:
                raise TrainingFailedError(
                    f"head of seed {seed}: collapsed after {self.params.epochs} epochs: {why}; "
                    f"{against_collapse(self.spec, self.params)}"
                )
            collapsed += [seed] if why else []
            losses.append(loss)
            accuracies.append(accuracy)
        facts = {
            "reads": self.spec.reads,
            "spec": self.full_spec.to_dict(),
            "params": self.params.to_dict(),
            "seeds": list(self.params.seeds),
            "train_loss": losses,
            "train_accuracy": accuracies,
            "train_rows": self.rows_per_unit,
            "excluded_rows": len(self.labels) - self.rows_per_unit,
            **({"collapsed": collapsed} if collapsed else {}),
        }
        if self.selection is not None and state.best is not None:
            facts |= {
                "selected_on": self.selection.name,
                "best_epoch": state.best.epoch.tolist(),
                "selection_accuracy": state.best.accuracy.tolist(),
            }
        return {WEIGHTS_KEY: weights}, facts

    def _written(self, tensors: dict[str, Tensor]) -> bytes:
        """Stacked parameters as safetensors, with a fitted scaling in the first layer."""
        if (scaling := self._batches.scaling) is not None:
            tensors = scaling.folded(tensors)
        return bytes(safetensors_torch.save({k: v.cpu().contiguous() for k, v in tensors.items()}))

    def _heads(self, tensors: dict[str, Tensor]) -> list[Head]:
        """The head of each seed, in eval mode."""
        weights, seeds = self._written(tensors), range(len(self.params.seeds))
        return [load_head(self.full_spec, weights, at, device=self.device) for at in seeds]

    @cached_property
    def _stored(self) -> tuple[Tensor, ...]:
        """Features, logits, labels and further arrays of the training rows, on the device."""
        kept = self.is_trained_on
        further = {name: self.further[name][kept] for name in self.spec.further.names}
        return self._on_device(self.features[kept], self.logits[kept], self.labels[kept], further)

    @cached_property
    def _selected(self) -> tuple[Tensor, ...]:
        """The same of the selection set."""
        assert self.selection is not None  # required of the caller
        rows = self.selection.usable()
        return self._on_device(rows.features, rows.logits, rows.labels, rows.further)

    def _on_device(
        self,
        features: NDArray[np.floating[Any]],
        logits: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        further: Arrays,
    ) -> tuple[Tensor, ...]:
        others = [further[name] for name in self.spec.further.names]
        f, z, *more = (each.astype(np.float32) for each in (features, logits, *others))
        arrays = (f, z, labels.astype(np.int64), *more)
        return tuple(torch.from_numpy(each).to(self.device) for each in arrays)

    def _named(self, others: Sequence[Tensor]) -> dict[str, Tensor]:
        """The further arrays by name."""
        return dict(zip(self.spec.further.names, others, strict=True))

    @cached_property
    def _batches(self) -> Batches:
        features, logits, labels, *others = self._stored
        inputs = self.full_spec.reading.inputs(features, logits, self._named(others))
        return Batches(
            inputs.vectors,
            labels,
            self.params.seeds,
            self.params.batch_rows,
            self.spec.is_in_factors,
            self.spec.layers,
            self.spec.dropout,
            self._dtype,
            FittedScaling.of_input(inputs, self.spec.scaling),
            inputs.columns,
        )

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of the matrix products."""
        return torch.bfloat16 if self.params.precision == "bf16" else torch.float32

    def __getstate__(self) -> dict[str, Any]:
        # Cached tensors can be recomputed, and those on a device cannot be pickled.
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _state(self) -> HeadState:
        require_device(self.device)
        n_copies = len(self.params.seeds)
        heads = StackedMlp(
            self.spec.sizes,
            n_copies,
            factors=self.spec.factors,
            device=self.device,
            dtype=self._dtype,
        )
        optimizer = torch.optim.SGD(
            [heads.parameters],
            lr=self.params.learning_rate,
            momentum=self.params.momentum,
            weight_decay=self.params.weight_decay,
            fused=True,
        )
        return HeadState(heads, optimizer)

    def _epoch(self, state: HeadState, unit: int, tick: Tick) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of correct rows of each seed, both ``(K,)``."""
        k = len(self.params.seeds)
        total = torch.zeros(k, device=self.device)
        n_correct = torch.zeros(k, dtype=torch.int64, device=self.device)
        for batch in self._batches.epoch(unit):
            hidden, logits = state.heads.forward(batch.inputs, batch.masks)
            of_label, slope = cross_entropy(logits, batch.labels)
            state.heads.backward(batch.inputs, hidden, slope, batch.masks)
            state.optimizer.step()
            total -= of_label.sum(dim=1)
            n_correct += (logits.argmax(dim=2) == batch.labels).sum(dim=1)
            tick(batch.labels.shape[1])
        return total, n_correct

    @torch.inference_mode()
    def _evaluate(self, head: Head, rows: tuple[Tensor, ...]) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of predicted classes on rows as in `_stored`."""
        total, n_correct, predicted = 0.0, 0, set[int]()
        at_once = min(_EVALUATION_ROWS, self.spec.batch_rows)
        blocks = (torch.split(each, at_once) for each in rows)
        for f, z, labels, *others in zip(*blocks, strict=True):
            logits = head(f, z, self._named(others))
            prediction = logits.argmax(dim=1)
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            n_correct += int((prediction == labels).sum())
            predicted.update(torch.unique(prediction).tolist())
        n_rows = len(rows[0])
        return total / n_rows, n_correct / n_rows, len(predicted)


def _tensors(state: HeadState) -> dict[str, Tensor]:
    """Views of all parameters, stacked by seed, under their names in a ``Head``."""
    heads = state.heads
    compact = zip(("low_rank.classes", "low_rank.features"), heads.vectors, strict=False)
    return dict(compact) | {
        name: tensor
        for layer, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True))
        for name, tensor in zip(layer_names(layer), (weight, bias.squeeze(1)), strict=True)
    }
