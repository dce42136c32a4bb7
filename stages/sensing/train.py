"""Training a sensing network: a loop of epochs over a data set that lies on the device."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from pipeline.stage import Tick
from stages.errors import InputError, StageError
from stages.sensing.augmentation import EpochDraws, augmented, epoch_draws
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.labelled import LabelledImages, Openable, normalisation, read_labelled
from stages.sensing.model import Sensing, describe, normalised
from stages.sensing.recipe import TrainParams, held_out_rows, learning_rate
from stages.sensing.weights import save_weights

EVALUATION_BATCH = 256


@dataclass(slots=True)
class TrainState:
    """What an epoch changes (network, optimiser) and what it reads, all on the device.

    ``kept`` are the places in ``data`` of the rows that are not held out, ``[m]`` int64; ``test``
    is read when it is first looked at.
    """

    network: nn.Module
    optimiser: torch.optim.SGD
    data: LabelledImages
    kept: Tensor
    card: ModelCard
    mean: Tensor
    scale: Tensor
    test: LabelledImages | None = None


@dataclass(frozen=True)
class TrainSensing:
    """The loop stage that trains a network on a source; its units are epochs.

    Attributes:
        model_name: what the model will be called.
        train, test: sources; the test set is only looked at in the end.
        last_layer: the network's last linear layer, where tracing cannot tell.
    """

    model_name: str
    params: TrainParams
    train: Openable
    test: Openable | None = None
    device: str = "cpu"
    last_layer: str | None = None

    @property
    def name(self) -> str:
        """What progress calls it."""
        return "train-sensing"

    @property
    def n_units(self) -> int:
        """Epochs."""
        return self.params.epochs

    @property
    def unit_name(self) -> str:
        """What a unit is called."""
        return "epoch"

    @cached_property  # opening a source may scan a folder
    def rows_per_unit(self) -> int:
        """Training images; the mean over the epochs where some are held out for a time."""
        n_missed = self.params.held_out * self.params.n_epochs_held_out
        return self.train.open().n_rows - n_missed // self.params.epochs

    def start(self) -> TrainState:
        """A fresh network, initialised from the seed.

        Raises:
            InputError: the data has no labels, too few rows to hold some out, or the network does
                not fit it.
        """
        source = self.train.open()
        data = read_labelled(source)
        kept = self._kept(data, source.n_rows)
        with self._seeded(self.params.seed):
            network = build_network(self.params.network, source.n_classes)
        mean, std, origin = normalisation(data.images[kept], source.family)
        card = describe(
            network,
            name=self.model_name,
            network_name=self.params.network,
            class_names=source.class_names,
            image_size=source.image_size[0],
            family=source.family,
            mean=mean,
            std=std,
            last_layer=self.last_layer,
            extra={"normalisation": origin},
        )
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=self.params.lr,
            momentum=self.params.momentum,
            weight_decay=self.params.weight_decay,
            fused=True,
        )
        return TrainState(
            network=network,
            optimiser=optimiser,
            data=data.to(self.device),
            kept=kept.to(self.device),
            card=card,
            mean=255 * torch.tensor(mean, device=self.device),
            scale=1 / (255 * torch.tensor(std, device=self.device)),
        )

    def step(self, state: TrainState, unit: int, tick: Tick) -> dict[str, float]:
        """Train for one epoch, in place; the mean loss and accuracy over its batches.

        Raises:
            StageError: the loss is no longer a number.
        """
        rows = self._rows_in(state, unit)
        n_rows = len(rows)
        draws = epoch_draws(n_rows, self.params.seed, unit).to(self.device)
        draws = dataclasses.replace(draws, order=rows[draws.order])
        total = torch.zeros(2, device=self.device, dtype=torch.float64)  # loss, correct
        state.network.train()
        with self._seeded(self.params.seed + 1_000_003 * (unit + 1)):
            for start in range(0, n_rows, self.params.batch):
                stop = min(start + self.params.batch, n_rows)
                rate = learning_rate(self.params, unit + start / n_rows)
                # Batch norm has no statistics of a single image.
                if stop - start > 1:
                    total += self._train_batch(state, draws, slice(start, stop), rate)
                tick(stop - start)
        loss, accuracy = (total / n_rows).tolist()
        if not math.isfinite(loss):
            raise StageError(
                f"training {self.model_name} diverged: loss {loss} in epoch {unit + 1} of "
                f"{self.params.epochs}; use a lower learning rate than {self.params.lr}"
                + (", or precision fp32" if self.params.precision == "bf16" else "")
            )
        return {"loss": loss, "accuracy": accuracy}

    def _train_batch(
        self, state: TrainState, draws: EpochDraws, places: slice, rate: float
    ) -> Tensor:
        """One step of the optimiser; the sums of loss and of right answers, ``[2]``."""
        rows = draws.order[places]
        images, labels = state.data.images[rows], state.data.labels[rows]
        images = augmented(
            images, draws.flip[places], draws.shift[places], self.params.augmentation
        )
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"
        ):
            logits = state.network(normalised(images, state.mean, state.scale)).float()
            loss = functional.cross_entropy(logits, labels)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        state.optimiser.step()
        n_right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(labels), n_right.double()])

    def save(self, state: TrainState) -> bytes:
        """Weights and momentum, as safetensors."""
        tensors = {f"network.{name}": _copy(x) for name, x in state.network.state_dict().items()}
        for name, parameter in state.network.named_parameters():
            momentum = state.optimiser.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = _copy(momentum)
        data: bytes = save_tensors(tensors)
        return data

    def load(self, data: bytes) -> TrainState:
        """The state that ``save`` was given; going on from it repeats the same numbers."""
        tensors = load_tensors(data)
        state = self.start()
        prefix = "network."
        state.network.load_state_dict(
            {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        )
        for name, parameter in state.network.named_parameters():
            if (momentum := tensors.get(f"momentum.{name}")) is not None:
                # empty_like keeps the parameter's memory layout, as the optimiser itself does.
                buffer = torch.empty_like(parameter).copy_(momentum)
                state.optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
        return state

    def finish(self, state: TrainState) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
        """The weights and facts of the model after the last epoch; see ``model_after``."""
        return self.model_after(state, self.params.epochs)

    def model_after(
        self, state: TrainState, epoch: int
    ) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
        """The weights, and the facts: the model's card, accuracies in eval mode, the recipe.

        ``M`` is the mean of the largest logit over the un-augmented images trained on in ``epoch``,
        counted from 1; the accuracy on train is that on them.
        """
        weights = save_weights(state.network)
        card = describe(
            state.network,
            name=self.model_name,
            network_name=self.params.network,
            class_names=state.card.class_names,
            image_size=state.card.image_size,
            family=state.card.family,
            mean=state.card.mean,
            std=state.card.std,
            last_layer=state.card.last_layer,
            extra=state.card.extra,
        )
        sensing = Sensing(state.network, card).to(self.device)
        rows = self._rows_in(state, epoch - 1)
        train_accuracy, M = _evaluated(sensing, state.data, rows)
        if self.test and state.test is None:
            state.test = read_labelled(self.test.open()).to(self.device)
        test = state.test
        test_accuracy = _evaluated(sensing, test, _all_of(test))[0] if test else None
        facts = {
            "card": dataclasses.replace(card, M=M).to_dict(),
            "M": M,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
            "n_train": len(rows),
            "n_train_left_out": state.data.n_left_out,
            "n_held_out": len(state.data.labels) - len(rows),
            "n_test": len(test.labels) if test else 0,
            "recipe": {
                **dataclasses.asdict(self.params),
                "milestones": list(self.params.milestones),
            },
        }
        return {"weights.safetensors": weights}, facts

    def _kept(self, data: LabelledImages, n_rows: int) -> Tensor:
        """Places in ``data`` of the rows that are not held out; ``n_rows`` is the source's."""
        held_out = held_out_rows(n_rows, self.params.held_out, self.params.seed)
        kept = torch.nonzero(~torch.isin(data.rows, torch.from_numpy(held_out))).flatten()
        if not len(kept):
            raise InputError(
                f"{self.params.held_out} of {n_rows} rows held out leave none to train on; hold "
                "out fewer"
            )
        return kept

    def _rows_in(self, state: TrainState, unit: int) -> Tensor:
        """Places in the data of the rows that an epoch, counted from 0, is trained on."""
        return state.kept if unit < self.params.n_epochs_held_out else _all_of(state.data)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """torch's own generators (initialisation, dropout) from ``seed``, and restored after."""
        device = torch.device(self.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _all_of(data: LabelledImages) -> Tensor:
    return torch.arange(len(data.labels), device=data.labels.device)


def _evaluated(sensing: Sensing, data: LabelledImages, rows: Tensor) -> tuple[float, float]:
    """Accuracy, and the mean of the largest logit, on some rows of ``data``."""
    n_right, sum_max = 0, 0.0
    for batch in torch.split(rows, EVALUATION_BATCH):
        _, logits = sensing(data.images[batch])
        largest = logits.max(dim=1)
        n_right += int((largest.indices == data.labels[batch]).sum())
        sum_max += float(largest.values.double().sum())
    return n_right / len(rows), sum_max / len(rows)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
