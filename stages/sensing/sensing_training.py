"""Train a sensing network: a loop of epochs over a data set that is kept decoded."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.progress import Progress
from pipeline.terminal import counted
from pipeline.work import Tick
from stages.data.flips import Flips
from stages.data.source import ImageSource
from stages.errors import InputError, TrainingFailedError
from stages.sensing.attacked import Attacked
from stages.sensing.augmentation import EpochDraws, augmented, epoch_draws
from stages.sensing.build import build_network
from stages.sensing.card import ACCEPTS_UNSTABLE, ModelCard
from stages.sensing.device import require_device
from stages.sensing.evaluated import EVALUATION_BATCH, all_of, evaluated, features_of
from stages.sensing.fault import blame_rows
from stages.sensing.hidden_layers import without_hidden_layers
from stages.sensing.initial_weights import load_initial
from stages.sensing.labelled import (
    LabelledImages,
    Openable,
    joined,
    normalisation,
    read_labelled,
    sample_id,
)
from stages.sensing.methods.adversarial import frozen
from stages.sensing.methods.chosen import method_of
from stages.sensing.methods.method import Batch, Method
from stages.sensing.methods.method_params import n_added
from stages.sensing.model import Sensing, describe, lay_out, normalised, sensing_of
from stages.sensing.probe import N_ROWS
from stages.sensing.round_trip import check_round_trip
from stages.sensing.start import RANDOM, Start
from stages.sensing.train_params import (
    TrainParams,
    check_trained_part,
    held_out_rows,
    learning_rate,
)
from stages.sensing.trained import TrainedModel
from stages.sensing.training_state import TrainState, classifier, optimiser_of, restore, saved
from stages.sensing.weights import save_weights, weights_hash


@dataclass(frozen=True)
class SensingTraining:
    """The loop stage that trains a network on a source; its units are epochs.

    Attributes:
        model_name: name of the model.
        train, test: sources; the test set is only used at the end.
        last_layer: name of the last linear layer, if it cannot be found automatically.
        accept_unstable: accept a network whose output for an image depends on chance or the batch.
        initial: pretrained weights and their preprocessing, or random weights.
        samples: ids of the training rows; ``None`` for all.
        attacked: model that the training method attacks, if it does.
    """

    model_name: str
    params: TrainParams
    train: Openable
    test: Openable | None = None
    device: str = "cpu"
    last_layer: str | None = None
    accept_unstable: bool = False
    initial: Start = RANDOM
    samples: frozenset[str] | None = None
    attacked: Attacked | None = None

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
        n_rows = self.train.open().n_rows if self.samples is None else len(self.samples)
        n_rows = max(0, n_rows - n_missed // self.params.epochs)
        return n_rows + n_added(self.params.method, n_rows)

    def start(self) -> TrainState:
        """A fresh network, initialised from the seed, or with pretrained weights.

        Raises:
            InputError: torch cannot use the device, the data has no labels, lacks some samples or
            has too few rows to hold some out, or the network does not fit it or cannot be rebuilt
            from its stored state.
        """
        require_device(self.device)
        check_trained_part(self.params)
        source = self.train.open()
        clean = self._labelled(source)
        method = method_of(self.params, self.device, self.attacked)
        kept = self._kept(clean, source.n_rows)
        network = self._network(source.n_classes)
        card = self._described(network, source, clean.images, kept)
        if weights := self.initial.weights:
            load_initial(network, weights, card.last_layer)
        is_frozen = self.params.train != "all"
        check_round_trip(network, card, is_trained=not is_frozen)
        network.to(self.device)
        sensing = self._sensing(network, card, clean.take(kept[:N_ROWS]))
        memory_format = sensing.arrangement.memory_format
        lay_out(network, memory_format)
        trained = self._trained(network, card, method)
        data = self._with_added(method, clean, kept)
        return TrainState(
            network=network,
            trained=trained,
            optimiser=optimiser_of(self.params, trained),
            data=data.to(self.device),
            n_clean=len(clean.labels),
            kept=self._kept(data, source.n_rows).to(self.device),
            method=method,
            card=card,
            mean=255 * torch.tensor(card.mean, device=self.device),
            scale=1 / (255 * torch.tensor(card.std, device=self.device)),
            memory_format=memory_format,
            frozen=sensing if is_frozen else None,
        )

    def _sensing(self, network: nn.Module, card: ModelCard, images: Tensor) -> Sensing:
        """The network, checked on some images; it computes the input of a part trained alone.

        That of a classifier with hidden layers is the input of its first layer.
        """
        precision = "fp32" if self.params.train == "all" else self.params.precision
        if self.params.train != "classifier":
            return sensing_of(network, card, images, precision, is_new=True)
        sensing_of(network, card, images, is_new=True)
        with without_hidden_layers(network, card.last_layer) as layer:
            plain = dataclasses.replace(card, last_layer=layer)
            return sensing_of(network, plain, images, precision)

    def _trained(self, network: nn.Module, card: ModelCard, method: Method) -> nn.Module:
        """The part of the network that is trained, or the network with what the method adds."""
        if self.params.train != "all":
            return classifier(network, card, self.params.train)
        with self._seeded(self.params.seed):
            return method.trained(network, card).to(self.device)

    def _with_added(self, method: Method, clean: LabelledImages, kept: Tensor) -> LabelledImages:
        """The training images, and those that the method adds to them."""
        has_all = self.params.n_epochs_held_out < self.params.epochs
        added = method.added(clean, all_of(clean) if has_all else kept)
        return clean if added is None else joined(clean, added, f"training {self.model_name}")

    def _labelled(self, source: ImageSource) -> LabelledImages:
        """The images to train on, with the flipped labels, if any."""
        data = _read(source, self.samples)
        flips = self.params.flip_labels
        return data.flipped(Flips.of(flips), source) if flips else data

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
        total = torch.zeros(3, device=self.device, dtype=torch.float64)  # loss, correct, images
        if state.frozen is None:
            state.trained.train()
        elif self.params.augmentation == "none" and state.features is None:
            state.features = features_of(state.frozen, state.data)
        with self._seeded(self.params.seed + 1_000_003 * (unit + 1)):
            for start in range(0, n_rows, self.params.batch):
                stop = min(start + self.params.batch, n_rows)
                rate = learning_rate(self.params, unit + start / n_rows)
                # Batch norm has no statistics of a single image.
                if stop - start > 1:
                    total += self._train_batch(state, draws, slice(start, stop), rate)
                tick(stop - start)
        loss, accuracy = (total[:2] / total[2]).tolist()
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
        places = (
            slice(at, at + EVALUATION_BATCH) for at in range(0, len(draws.order), EVALUATION_BATCH)
        )
        batches = ((self._pixels(state, self._batch(state, draws, at).images),) for at in places)
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

    def _batch(self, state: TrainState, draws: EpochDraws, places: slice) -> Batch:
        """The augmented images and the labels at some positions in the order of an epoch."""
        rows = draws.order[places]
        images = augmented(
            state.data.take(rows),
            draws.flip[places],
            draws.shift[places],
            self.params.augmentation,
        )
        key = (self.params.seed, draws.epoch, places.start)
        return Batch(images, state.data.labels[rows], key, partial(self._logits, state))

    def _logits(self, state: TrainState, images: Tensor) -> Tensor:
        """Logits of the current network, in eval mode and without gradients of its weights."""
        with frozen(state.network), self._autocast():
            logits: Tensor = state.network(self._pixels(state, images))
        return logits.float()

    @staticmethod
    def _pixels(state: TrainState, images: Tensor) -> Tensor:
        """Images as the network expects them."""
        pixels = normalised(images, state.mean, state.scale)
        return pixels.contiguous(memory_format=state.memory_format)

    def _inputs(self, state: TrainState, draws: EpochDraws, places: slice) -> Tensor:
        """Input of the trained part, one view after another: pixels, or features if only the last
        layer is trained."""
        if state.features is not None:
            return state.features[draws.order[places]]
        batch = self._batch(state, draws, places)
        pixels = torch.cat([self._pixels(state, view) for view in state.method.views(batch)])
        if state.frozen is None:
            return pixels
        with torch.no_grad():
            return state.frozen.vectors(pixels)[0]

    def _train_batch(
        self, state: TrainState, draws: EpochDraws, places: slice, rate: float
    ) -> Tensor:
        """Run one optimiser step; returns the sums of losses and of correct predictions, and the
        number of images, ``[3]``."""
        labels = state.data.labels[draws.order[places]]
        inputs = self._inputs(state, draws, places)
        with self._autocast():
            outputs = state.trained(inputs).float().split(len(labels))
            loss = state.method.loss(outputs, labels)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        state.optimiser.step()
        logits = outputs[0].detach()[:, : state.card.n_classes]
        n_right = (logits.argmax(1) == labels).sum()
        sums = [loss.detach().double() * len(labels), n_right.double()]
        return torch.stack([*sums, torch.full_like(sums[0], len(labels))])

    def save(self, state: TrainState) -> bytes:
        """Weights of the trained part and state of the optimiser, as safetensors."""
        return saved(state)

    def load(self, data: bytes) -> TrainState:
        """The inverse of ``save``; training continues with the same numbers."""
        state = self.start()
        restore(state, data)
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
        n_all, rows = len(rows), rows[rows < state.n_clean]
        sensing = sensing_of(state.network, card, state.data.take(rows[:N_ROWS]), is_new=True)
        train_accuracy, M, n_train_failed = evaluated(sensing, state.data, rows)
        if self.test and state.test is None:
            state.test = read_labelled(self.test.open()).to(self.device)
        test = state.test
        test_accuracy, _, n_test_failed = (
            evaluated(sensing, test, all_of(test)) if test else (None, None, 0)
        )
        model = TrainedModel(
            card=dataclasses.replace(card, M=M),
            M=M,
            train_accuracy=train_accuracy,
            test_accuracy=test_accuracy,
            n_train=len(rows),
            n_train_left_out=state.data.n_left_out,
            n_held_out=state.n_clean - len(rows),
            n_added=n_all - len(rows),
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
        if len(kept) < 2:  # batch norm has no statistics of a single image
            left_out = f", with {self.params.held_out} held out" if self.params.held_out else ""
            raise InputError(
                f"training {self.model_name}: expected two or more images to train on, found "
                f"{len(kept)} in {counted(n_rows, 'row')}{left_out}; give more images"
                + (", or hold out fewer" if left_out else "")
            )
        return kept

    def _rows_in(self, state: TrainState, unit: int) -> Tensor:
        """Indexes in the data of the training rows of an epoch, counted from 0."""
        return state.kept if unit < self.params.n_epochs_held_out else all_of(state.data)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Seed torch's generators (initialisation, dropout) in the block; restore them
        afterwards."""
        device = torch.device(self.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _read(source: ImageSource, samples: frozenset[str] | None = None) -> LabelledImages:
    """The readable, labelled images of a source, with a progress bar of its own."""
    with Progress(f"read {source.name}-{source.split}", source.n_rows) as progress:
        return read_labelled(source, progress.advance, progress.note, samples)
