"""Train a sensing network: a loop of epochs over a data set that is kept decoded."""

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

from pipeline.progress import Progress
from pipeline.work import Tick
from stages.data.source import ImageSource
from stages.errors import InputError, TrainingFailedError
from stages.metrics.finite import finite_rows
from stages.sensing.augmentation import EpochDraws, augmented, epoch_draws
from stages.sensing.build import build_network
from stages.sensing.card import ACCEPTS_UNSTABLE, ModelCard
from stages.sensing.device import full_float32, require_device
from stages.sensing.fault import blame_rows
from stages.sensing.initial_weights import load_initial
from stages.sensing.labelled import (
    LabelledImages,
    Openable,
    normalisation,
    read_labelled,
    sample_id,
)
from stages.sensing.model import Sensing, describe, last_layers, lay_out, normalised, sensing_of
from stages.sensing.probe import N_ROWS
from stages.sensing.round_trip import check_round_trip
from stages.sensing.start import RANDOM, Start
from stages.sensing.train_params import TrainParams, held_out_rows, learning_rate
from stages.sensing.trained import TrainedModel
from stages.sensing.weights import cpu_copy, load_state, save_weights, weights_hash

EVALUATION_BATCH = 256


@dataclass(slots=True)
class TrainState:
    """What an epoch changes (network, optimiser) and what it reads, all on the device.

    ``kept`` has the indexes in ``data`` of the rows that are not held out, ``[m]`` int64; ``test``
    is read when it is first used. If only the last layer is trained, ``frozen`` computes its input
    and ``features`` has it for all rows, ``[n, d]`` float32, unless augmentation changes them.
    """

    network: nn.Module
    optimiser: torch.optim.SGD
    data: LabelledImages
    kept: Tensor
    card: ModelCard
    mean: Tensor
    scale: Tensor
    memory_format: torch.memory_format
    test: LabelledImages | None = None
    frozen: Sensing | None = None
    features: Tensor | None = None

    @property
    def trained(self) -> nn.Module:
        """The part of the network that is trained."""
        return _classifier(self.network, self.card) if self.frozen else self.network


def _classifier(network: nn.Module, card: ModelCard) -> nn.Linear:
    layers = last_layers(network, card)
    if len(layers) > 1 or not isinstance(layers[0], nn.Linear):
        raise InputError(
            f"network {card.network}: --train last-layer needs one linear layer, found "
            f"{card.last_layer!r} ({type(layers[0]).__name__}); give --train all"
        )
    return layers[0]


@dataclass(frozen=True)
class SensingTraining:
    """The loop stage that trains a network on a source; its units are epochs.

    Attributes:
        model_name: name of the model.
        train, test: sources; the test set is only used at the end.
        last_layer: name of the last linear layer, if it cannot be found automatically.
        accept_unstable: accept a network whose output for an image depends on chance or the batch.
        initial: pretrained weights and their preprocessing, or random weights.
    """

    model_name: str
    params: TrainParams
    train: Openable
    test: Openable | None = None
    device: str = "cpu"
    last_layer: str | None = None
    accept_unstable: bool = False
    initial: Start = RANDOM

    @property
    def n_units(self) -> int:
        """Epochs."""
        return self.params.epochs

    @property
    def unit_name(self) -> str:
        """Name of a unit."""
        return "epoch"

    @cached_property  # opening a source may scan a folder
    def rows_per_unit(self) -> int:
        """Number of training images, averaged over the epochs if some are held out temporarily."""
        n_missed = self.params.held_out * self.params.n_epochs_held_out
        return self.train.open().n_rows - n_missed // self.params.epochs

    def start(self) -> TrainState:
        """A fresh network, initialised from the seed, or with pretrained weights.

        Raises:
            InputError: torch cannot use the device, the data has no labels or too few rows to hold
            some out, or the network does not fit it or cannot be rebuilt from its stored state.
        """
        require_device(self.device)
        source = self.train.open()
        data = _read(source)
        kept = self._kept(data, source.n_rows)
        network = self._network(source.n_classes)
        card = self._described(network, source, data.images, kept)
        if weights := self.initial.weights:
            load_initial(network, weights, card.last_layer)
        is_frozen = self.params.train == "last-layer"
        check_round_trip(network, card, is_trained=not is_frozen)
        network.to(self.device)
        precision = self.params.precision if is_frozen else "fp32"
        sensing = sensing_of(network, card, data.take(kept[:N_ROWS]), precision, is_new=True)
        memory_format = sensing.arrangement.memory_format
        lay_out(network, memory_format)
        trained = _classifier(network, card) if is_frozen else network
        optimiser = torch.optim.SGD(
            trained.parameters(),
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
            mean=255 * torch.tensor(card.mean, device=self.device),
            scale=1 / (255 * torch.tensor(card.std, device=self.device)),
            memory_format=memory_format,
            frozen=sensing if is_frozen else None,
        )

    def _network(self, n_classes: int) -> nn.Module:
        """The network with random weights, which the seed determines."""
        with self._seeded(self.params.seed):
            return build_network(self.params.network, n_classes)

    def _described(
        self, network: nn.Module, source: ImageSource, images: Tensor, rows: Tensor
    ) -> ModelCard:
        """The card of the network, with the normalisation of the training images by default."""
        pixels, origin = normalisation(images, source.family, rows)
        if given := self.initial.normalisation:
            pixels, origin = given, "that of the weights"
        card = describe(
            network,
            name=self.model_name,
            network_name=self.params.network,
            class_names=source.class_names,
            image_size=source.image_size[0],
            family=source.family,
            normalisation=pixels,
            last_layer=self.last_layer,
        ).with_facts(
            {"normalisation": origin, **(ACCEPTS_UNSTABLE if self.accept_unstable else {})}
        )
        return dataclasses.replace(card, resizing=self.initial.resizing)

    def step(self, state: TrainState, unit: int, tick: Tick) -> dict[str, float]:
        """Train for one epoch, in place; returns the mean loss and accuracy of its batches.

        Raises:
            TrainingFailedError: the loss is not finite; the message says if images are the cause.
        """
        rows = self._rows_in(state, unit)
        n_rows = len(rows)
        draws = epoch_draws(n_rows, self.params.seed, unit).to(self.device)
        draws = dataclasses.replace(draws, order=rows[draws.order])
        total = torch.zeros(2, device=self.device, dtype=torch.float64)  # loss, correct
        if state.frozen is None:
            state.network.train()
        elif self.params.augmentation == "none" and state.features is None:
            state.features = _features(state.frozen, state.data)
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
            self._blame_images(state, draws)
            raise TrainingFailedError(
                f"training {self.model_name} diverged: loss {loss} in epoch {unit + 1} of "
                f"{self.params.epochs}; use a lower learning rate than {self.params.lr}"
                + (", or precision fp32" if self.params.precision == "bf16" else "")
            )
        return {"loss": loss, "accuracy": accuracy}

    def _blame_images(self, state: TrainState, draws: EpochDraws) -> None:
        """Raise ``TrainingFailedError`` if images of an epoch, as augmented, are the cause."""
        fresh = self._network(state.card.n_classes).to(self.device)
        batches = (
            (self._pixels(state, draws, slice(at, at + EVALUATION_BATCH)),)
            for at in range(0, len(draws.order), EVALUATION_BATCH)
        )
        with self._autocast():
            blame_rows(
                f"training {self.model_name}",
                fresh,
                batches,
                lambda at: sample_id(self.train.open(), int(state.data.rows[draws.order[at]])),
            )

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.params.precision == "bf16")

    def _pixels(self, state: TrainState, draws: EpochDraws, places: slice) -> Tensor:
        """The augmented and normalised input for some positions in the order of an epoch."""
        images = state.data.take(draws.order[places])
        images = augmented(
            images, draws.flip[places], draws.shift[places], self.params.augmentation
        )
        pixels = normalised(images, state.mean, state.scale)
        return pixels.contiguous(memory_format=state.memory_format)

    def _inputs(self, state: TrainState, draws: EpochDraws, places: slice) -> Tensor:
        """Input of the trained part: pixels, or features if only the last layer is trained."""
        if state.features is not None:
            return state.features[draws.order[places]]
        pixels = self._pixels(state, draws, places)
        if state.frozen is None:
            return pixels
        with torch.no_grad():
            return state.frozen.vectors(pixels)[0]

    def _train_batch(
        self, state: TrainState, draws: EpochDraws, places: slice, rate: float
    ) -> Tensor:
        """Run one optimiser step; returns the sums of losses and of correct predictions,
        ``[2]``."""
        labels = state.data.labels[draws.order[places]]
        inputs = self._inputs(state, draws, places)
        with self._autocast():
            logits = state.trained(inputs).float()
            loss = functional.cross_entropy(logits, labels)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        state.optimiser.step()
        n_right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(labels), n_right.double()])

    def save(self, state: TrainState) -> bytes:
        """Weights and momentum of the trained part, as safetensors."""
        part = state.trained
        tensors = {f"network.{name}": cpu_copy(x) for name, x in part.state_dict().items()}
        for name, parameter in part.named_parameters():
            momentum = state.optimiser.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = cpu_copy(momentum)
        data: bytes = save_tensors(tensors)
        return data

    def load(self, data: bytes) -> TrainState:
        """The inverse of ``save``; training continues with the same numbers."""
        tensors = load_tensors(data)
        state = self.start()
        prefix = "network."
        load_state(
            state.trained,
            {
                name.removeprefix(prefix): x
                for name, x in tensors.items()
                if name.startswith(prefix)
            },
        )
        for name, parameter in state.trained.named_parameters():
            if (momentum := tensors.get(f"momentum.{name}")) is not None:
                # empty_like keeps the parameter's memory layout, as the optimiser itself does.
                buffer = torch.empty_like(parameter).copy_(momentum)
                state.optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
        return state

    def finish(self, state: TrainState) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
        """The weights and facts of the model after the last epoch; see ``model_after``."""
        if self.test and state.test is None:
            state.test = _read(self.test.open()).to(self.device)
        files, model = self.model_after(state, self.params.epochs)
        return files, model.to_dict()

    def model_after(self, state: TrainState, epoch: int) -> tuple[dict[str, bytes], TrainedModel]:
        """The weights and the card of the model after an epoch, counted from 1.

        ``M`` is the mean of the largest logit over the training images of ``epoch``, without
        augmentation; the training accuracy is measured on the same images.
        """
        weights = save_weights(state.network)
        # The code was hashed at the start: the file may have been edited since.
        sha256 = weights_hash(state.network)
        card = dataclasses.replace(state.card, name=self.model_name, weights_sha256=sha256)
        rows = self._rows_in(state, epoch - 1)
        sensing = sensing_of(state.network, card, state.data.take(rows[:N_ROWS]), is_new=True)
        train_accuracy, M, n_train_failed = _evaluated(sensing, state.data, rows)
        if self.test and state.test is None:
            state.test = read_labelled(self.test.open()).to(self.device)
        test = state.test
        test_accuracy, _, n_test_failed = (
            _evaluated(sensing, test, _all_of(test)) if test else (None, None, 0)
        )
        model = TrainedModel(
            card=dataclasses.replace(card, M=M),
            M=M,
            train_accuracy=train_accuracy,
            test_accuracy=test_accuracy,
            n_train=len(rows),
            n_train_left_out=state.data.n_left_out,
            n_held_out=len(state.data.labels) - len(rows),
            n_test=len(test.labels) if test else 0,
            n_train_not_finite=n_train_failed,
            n_test_not_finite=n_test_failed,
            recipe=self.params,
        )
        return {"weights.safetensors": weights}, model

    def _kept(self, data: LabelledImages, n_rows: int) -> Tensor:
        """Indexes in ``data`` of the rows that are not held out; the source has ``n_rows`` rows."""
        held_out = held_out_rows(n_rows, self.params.held_out, self.params.seed)
        kept = torch.nonzero(~torch.isin(data.rows, torch.from_numpy(held_out))).flatten()
        if not len(kept):
            raise InputError(
                f"{self.params.held_out} of {n_rows} rows held out leave none to train on; hold "
                "out fewer"
            )
        return kept

    def _rows_in(self, state: TrainState, unit: int) -> Tensor:
        """Indexes in the data of the training rows of an epoch, counted from 0."""
        return state.kept if unit < self.params.n_epochs_held_out else _all_of(state.data)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Seed torch's generators (initialisation, dropout) in the block; restore them
        afterwards."""
        device = torch.device(self.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _all_of(data: LabelledImages) -> Tensor:
    return torch.arange(len(data.labels), device=data.labels.device)


def _read(source: ImageSource) -> LabelledImages:
    """The readable, labelled images of a source, with a progress bar of its own."""
    with Progress(f"read {source.name}-{source.split}", source.n_rows) as progress:
        return read_labelled(source, progress.advance, progress.note)


@full_float32()
def _features(frozen: Sensing, data: LabelledImages) -> Tensor:
    """Input of the last layer for all images, ``[n, d]`` float32."""
    batches = torch.split(_all_of(data), EVALUATION_BATCH)
    return torch.cat([frozen(data.take(batch))[0] for batch in batches])


@full_float32()
def _evaluated(sensing: Sensing, data: LabelledImages, rows: Tensor) -> tuple[float, float, int]:
    """Accuracy and mean of the largest logit on some rows of ``data``, and how many are left out.

    Rows whose features or logits are not finite are left out. Raises ``TrainingFailedError`` if no
    row remains.
    """
    n_right, n_counted, sum_max = 0, 0, 0.0
    for batch in torch.split(rows, EVALUATION_BATCH):
        features, logits = sensing(data.take(batch))
        is_finite = finite_rows(features, logits)
        kept, logits = batch[is_finite], logits[is_finite]
        if len(kept):
            largest = logits.max(dim=1)
            n_right += int((largest.indices == data.labels[kept]).sum())
            sum_max += float(largest.values.double().sum())
            n_counted += len(kept)
    if not n_counted:
        raise TrainingFailedError(
            f"model {sensing.card.name}: after training its logits are not finite for any of "
            f"{len(rows):,} images: use a lower learning rate, or another network"
        )
    return n_right / n_counted, sum_max / n_counted, len(rows) - n_counted
