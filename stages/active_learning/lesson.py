"""One round of active learning: train f and H on the labelled rows, then select rows of a pool.

Training is that of the code of Ash et al. (2020), see docs/reference/active-learning.md: Adam, no
augmentation, gradients clamped to +-0.1, until the training accuracy is 99 %.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.work import Tick
from stages.active_learning.strategies import STRATEGIES, Pool, Query, Seen
from stages.errors import InputError, StageError
from stages.introspection.head import Head, head_factors
from stages.introspection.head_spec import HeadSpec
from stages.metrics.finite import finite_rows
from stages.reflection.losses import softmax
from stages.sensing.build import build_network, source_hash
from stages.sensing.card import ModelCard, Precision
from stages.sensing.device import full_float32, gpus_in_use
from stages.sensing.fault import blame_rows
from stages.sensing.initial_weights import InitialWeights, load_initial
from stages.sensing.labelled import normalisation
from stages.sensing.model import Sensing, describe, normalised, sensing_of
from stages.sensing.probe import N_ROWS
from stages.sensing.round_trip import check_round_trip
from stages.sensing.start import RANDOM, Start
from stages.sensing.weights import load_state
from store.plan import Plan

VERSION = 1
"""Raised whenever the same lessons give other results."""

Kind = Literal["f", "h"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ENOUGH = 0.99
"""Training accuracy at which a training stops, measured during the epoch."""

FEWEST_CLASSES = 2
"""Minimum number of classes among the labels; with fewer there is nothing to learn."""

CLAMP = 0.1
"""Maximum magnitude of an element of a gradient."""

HOPELESS, PATIENCE = 0.2, 50
"""A training that is right so seldom after so many epochs starts anew, from other weights."""

N_PASSES, DROPOUT = 10, 0.5
"""Of BALD: how often, and which share of the last layer's inputs."""

FORWARD_ROWS = 256

FEWEST_ROWS = 2
"""Minimum number of rows to train H on: a batch has at least this many."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LessonParams:
    """How f and H are trained, and how rows are selected.

    Attributes:
        strategy: one of ``STRATEGIES``.
        kind: ``f`` or ``h``: whose outputs the strategy sees.
        network: the network of f.
        epochs: maximum epochs of a training of f or H.
        batch: rows per training step.
        lr, head_lr: learning rates of Adam for f and H.
        precision: of f, in training and afterwards; H always has "fp32".
        layers: hidden layers of H; the last one is its embedding.
        initial: weights with which every training of f starts, and how images are prepared.
    """

    strategy: str = "badge"
    kind: Kind = "f"
    network: str = "resnet18"
    epochs: int = 500
    batch: int = 128
    lr: float = 1e-4
    head_lr: float = 1e-3
    layers: tuple[int, ...] = (300, 100)
    seed: int = 0
    precision: Precision = "fp32"
    initial: Start = RANDOM

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"strategy {self.strategy!r}: expected one of {', '.join(STRATEGIES)}")
        if self.kind not in KINDS:
            raise InputError(f"model kind {self.kind!r}: expected {' or '.join(KINDS)}")
        if self.epochs < 1 or self.batch < 2 or min(self.lr, self.head_lr) <= 0:
            raise InputError(
                "active learning: expected epochs >= 1, batch >= 2 and learning rates > 0; found "
                f"{self.epochs}, {self.batch}, {self.lr} and {self.head_lr}"
            )
        if not self.layers or min(self.layers) < 1:
            raise InputError("active learning: expected one or more hidden layers of H")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected zero or more")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision {self.precision!r}: expected fp32 or bf16")

    @property
    def max_epochs(self) -> int:
        """Maximum epochs of one training of f, and of H if there is one."""
        return self.epochs * (2 if self.kind == "h" else 1)

    def plan(self, stage: str, params: Mapping[str, Any], inputs: Plan) -> Plan:
        """Everything that determines an output of lessons like this one.

        Args:
            stage: name of the stage in the plan.
            params: the other parameters.
            inputs: what the plan records about the images.
        """
        code = source_hash(self.network)
        weights = self.initial.weights
        own = {**self.facts(), **self.initial.planned, "layers": list(self.layers)}
        own.pop("initial", None)
        return {
            **({"code": code} if code else {}),
            "stage": {"name": stage, "version": VERSION, "params": {**own, **params}},
            "inputs": {**inputs, **({"weights": weights.sha256} if weights else {})},
        }

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """The parameters as recorded in a card; random weights and "fp32" are not recorded."""
        values = asdict(self)
        if self.precision == "fp32":
            del values["precision"]
        if self.initial == RANDOM:
            del values["initial"]
        return values


@dataclass(frozen=True, slots=True)
class Fit:
    """Outcome of a training: number of epochs, and training accuracy of the last one."""

    epochs: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class Factors:
    """Output of one forward pass: ``features [n, d]`` and ``logits [n, N]``."""

    features: Array
    logits: Array

    def take(self, rows: NDArray[np.int64]) -> Factors:
        """The factors of some rows."""
        return Factors(self.features[rows], self.logits[rows])


def seed_of(*parts: int | str) -> int:
    """One seed derived from several numbers and words."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def card_of(
    params: LessonParams, images: Tensor, *, class_names: tuple[str, ...], family: str
) -> ModelCard:
    """Card of the untrained network: classes, last layer and normalisation of the pixels.

    Args:
        images: training images, ``[n, H, W, 3]`` uint8.

    Raises:
        InputError: the network is not suitable, see ``stages.sensing.model.sensing_of``.
    """
    pixels = params.initial.normalisation or normalisation(images, family)[0]
    with _seeded(params.seed):
        network = build_network(params.network, len(class_names))
    card = describe(
        network,
        name=params.network,
        network_name=params.network,
        class_names=class_names,
        image_size=images.shape[1],
        family=family,
        normalisation=pixels,
    )
    card = replace(card, resizing=params.initial.resizing)
    if weights := params.initial.weights:
        load_initial(network, weights, card.last_layer)
    check_round_trip(network, card, is_trained=True)
    sensing = sensing_of(network, card, images[:N_ROWS].cpu(), is_new=True)
    if sensing.arrangement.memory_format is not torch.channels_last:
        raise InputError(
            f"network {params.network}: it needs images that are contiguous in memory, but they "
            "are channels-last in active learning; use reshape or flatten instead of view"
        )
    return card


def renew(
    network: nn.Module, card: ModelCard, seed: int, weights: InitialWeights | None = None
) -> None:
    """Initialise all layers from the seed, except batch norms, which keep their state.

    With given weights, all layers get these; a last layer for other classes is initialised.
    """
    with _seeded(seed):
        fresh = build_network(card.network, card.n_classes)
    if weights is not None:
        load_initial(fresh, weights, card.last_layer)
        load_state(network, fresh.state_dict())
        return
    kept = tuple(
        f"{name}." for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    )
    state = fresh.state_dict()
    drawn = {name: value for name, value in state.items() if not name.startswith(kept)}
    load_state(network, drawn, strict=False)


def train_f(
    network: nn.Module,
    card: ModelCard,
    images: Tensor,
    labels: Tensor,
    params: LessonParams,
    seed: int,
    tick: Tick,
    name_of: Callable[[int], str] = lambda row: f"row {row}",
) -> Fit:
    """Train f in place on ``images [n, H, W, 3]`` uint8; ``tick`` is called after every epoch.

    Raises ``StageError`` if the training diverged, or if the logits of some images are not finite
    under any weights; ``name_of`` returns the name of the image at an index.
    """
    mean = 255 * torch.tensor(card.mean, device=images.device)
    scale = 1 / (255 * torch.tensor(card.std, device=images.device))

    def logits_of(rows: Tensor) -> Tensor:
        pixels = normalised(images[rows], mean, scale)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            found: Tensor = network(pixels)
        return found.float()

    def blame() -> None:
        with _seeded(seed):
            fresh = build_network(card.network, card.n_classes).to(images.device)
        batches = ((normalised(each, mean, scale),) for each in torch.split(images, FORWARD_ROWS))
        way_out = "remove them (or leave their labels empty)"
        blame_rows("training of f", fresh, batches, name_of, way_out)

    again = partial(renew, network, card, weights=params.initial.weights)
    learner = _Learner(network, params.lr, logits_of, again, blame)
    return _fit(learner, labels, params, seed, tick)


def train_h(
    factors: Factors, labels: Tensor, params: LessonParams, seed: int, tick: Tick
) -> tuple[Head, Fit]:
    """Train H on the factors of labelled rows and measure M; rows not finite are left out.

    Raises ``StageError`` if the training diverged, or if the inputs of H overflow for some rows.
    """
    kept = np.flatnonzero(finite_rows(factors.features, factors.logits))
    factors, labels = factors.take(kept), labels[torch.from_numpy(kept).to(labels.device)]
    if len(kept) < FEWEST_ROWS:
        raise StageError(
            "training of H: f has finite features and logits for fewer than two labelled images"
        )
    n_classes, feature_dim = factors.logits.shape[1], factors.features.shape[1]
    open_spec = HeadSpec(n_classes, feature_dim, params.layers)
    spec = replace(open_spec, M=open_spec.reading.measured(factors.logits).M)
    head = Head(spec).to(labels.device)
    features, logits = (
        torch.from_numpy(each).to(labels.device) for each in (factors.features, factors.logits)
    )

    def renew_head(seed: int) -> None:
        with _seeded(seed):
            head.load_state_dict(Head(spec).state_dict())

    def logits_of(rows: Tensor) -> Tensor:
        found: Tensor = head(features[rows], logits[rows])
        return found

    def blame() -> None:
        blocks = (torch.split(each, FORWARD_ROWS) for each in (features, logits))
        batches = zip(*blocks, strict=True)
        fresh = Head(spec).to(labels.device)
        blame_rows("training of H", fresh, batches, lambda row: f"labelled image {kept[row] + 1}")

    learner = _Learner(head, params.head_lr, logits_of, renew_head, blame)
    return head.eval(), _fit(learner, labels, params, seed, tick)


@full_float32()
def factors_of(sensing: Sensing, blocks: Iterable[Tensor]) -> Factors:
    """Factors of the images of some blocks, ``[n, H, W, 3]`` uint8 each, in one forward pass."""
    features, logits = [], []
    device = sensing.mean.device
    for block in blocks:
        for images in torch.split(block, FORWARD_ROWS):
            f, z = sensing(images.to(device))
            features.append(f.cpu().numpy())
            logits.append(z.cpu().numpy())
    return Factors(np.concatenate(features), np.concatenate(logits))


def seen_by(head: Head | None, factors: Factors) -> Seen:
    """Predictions and embedding of rows by H, or by f if there is no head."""
    hidden, logits = factors.features, factors.logits
    if head is not None:
        hidden, logits = head_factors(head, hidden, logits)
    with np.errstate(invalid="ignore"):  # infinities become NaN, which strategies ignore
        return Seen(softmax(logits), hidden)


def choose(
    params: LessonParams,
    sensing: Sensing,
    head: Head | None,
    pool: Factors,
    labelled: Factors,
    n: int,
    seed: int,
) -> Query:
    """Select rows of the pool to label next, without reading any image again.

    Rows with values that are not finite are never selected; labelled ones are ignored.

    Raises:
        InputError: fewer than ``n`` rows can be selected.
    """
    seen, of_labelled = seen_by(head, pool), seen_by(head, labelled)
    usable = seen.usable
    n_left_out = len(seen.embedding) - len(usable)
    if len(usable) < n:
        raise InputError(
            f"active learning: {n:,} images were requested, but only {len(usable):,} images "
            "without a label can be selected (the network's logits are not finite for "
            f"{n_left_out:,} others): request fewer"
        )
    what = Pool(
        seen.take(usable),
        of_labelled.take(of_labelled.usable),
        partial(_passes, sensing, head, pool.take(usable), seed),
    )
    query = STRATEGIES[params.strategy](what, n, np.random.default_rng(seed))
    return Query(usable[query.rows], query.scores, n_left_out)


def _passes(sensing: Sensing, head: Head | None, pool: Factors, seed: int) -> Iterator[Array]:
    """Probabilities with dropout on the features; H reads the gradients of that pass."""
    weight = sensing.weight.cpu().numpy()
    bias = 0 if sensing.bias is None else sensing.bias.cpu().numpy()
    for number in range(N_PASSES):
        generator = np.random.default_rng([seed, number])
        mask = generator.random(pool.features.shape, dtype=np.float32) >= DROPOUT
        features = pool.features * mask / np.float32(1 - DROPOUT)
        yield seen_by(head, Factors(features, features @ weight.T + bias)).probabilities


@dataclass(frozen=True, eq=False)
class _Learner:
    """What is trained, f or H.

    Attributes:
        module: its weights.
        lr: learning rate.
        logits_of: maps places of rows to logits.
        renew: initialises the weights again, by a seed.
        blame: called once, when a loss is not finite; raises if the rows are the cause.
    """

    module: nn.Module
    lr: float
    logits_of: Callable[[Tensor], Tensor]
    renew: Callable[[int], None]
    blame: Callable[[], None]


def _fit(learner: _Learner, labels: Tensor, params: LessonParams, seed: int, tick: Tick) -> Fit:
    """Train until enough rows are right, or for ``params.epochs``."""
    accuracy, is_blamed = 0.0, False
    for epoch in range(params.epochs):
        if epoch == 0 or (epoch % PATIENCE == 0 and accuracy < HOPELESS):
            learner.renew(seed_of(seed, "weights", epoch))
            optimiser = torch.optim.Adam(learner.module.parameters(), lr=learner.lr)
        rng = np.random.default_rng([seed, epoch])
        order = torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
        with _seeded(seed_of(seed, "dropout", epoch)):
            accuracy, loss = _epoch(learner, optimiser, labels, torch.split(order, params.batch))
        if not is_blamed and not math.isfinite(loss):
            learner.blame()
            is_blamed = True
        tick(1)
        if accuracy >= ENOUGH:
            break
    if not all(bool(torch.isfinite(value).all()) for value in learner.module.parameters()):
        raise StageError(
            f"training diverged after {epoch + 1} epochs: lower the rate {learner.lr:g}"
        )
    return Fit(epoch + 1, accuracy)


def _epoch(
    learner: _Learner, optimiser: torch.optim.Adam, labels: Tensor, batches: Iterable[Tensor]
) -> tuple[float, float]:
    """Train on each batch of rows; the share of right answers, and the sum of the losses."""
    module, device = learner.module.train(), labels.device
    n_right, n_seen = torch.zeros((), dtype=torch.int64, device=device), 0
    total = torch.zeros((), device=device)
    for rows in batches:
        if len(rows) > 1:  # batch norm has no statistics of a single image
            logits = learner.logits_of(rows)
            loss = functional.cross_entropy(logits, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            nn.utils.clip_grad_value_(module.parameters(), CLAMP)
            optimiser.step()
            n_right += (logits.detach().argmax(1) == labels[rows]).sum()
            n_seen += len(rows)
            total += loss.detach()
    return int(n_right) / n_seen, float(total)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators in the block, and restore them afterwards."""
    with torch.random.fork_rng(devices=gpus_in_use()):
        torch.manual_seed(seed)
        yield
