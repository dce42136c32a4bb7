"""One lesson of active learning: train f and H on what is labelled, look at a pool, choose rows.

Training is that of the code of Ash et al. (2020), see docs/active-learning.md: Adam, no
augmentation, gradients clamped to +-0.1, until 99 % of the training rows are right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.stage import Tick
from stages.applications.strategies import STRATEGIES, Pool, Query, Seen
from stages.errors import InputError, StageError
from stages.introspection.head import Head, HeadSpec, head_factors
from stages.reflection.losses import softmax
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.labelled import normalisation
from stages.sensing.model import Sensing, describe, normalised

Kind = Literal["f", "h"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ENOUGH = 0.99
"""Share of the training rows that must be right, counted while they are learned from."""

FEWEST_CLASSES = 2
"""With labels of fewer there is nothing to learn."""

CLAMP = 0.1
"""Largest element of a gradient."""

HOPELESS, PATIENCE = 0.2, 50
"""A training that is right so seldom after so many epochs starts anew, from other weights."""

N_PASSES, DROPOUT = 10, 0.5
"""Of BALD: how often, and which share of the last layer's inputs."""

FORWARD_ROWS = 256

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LessonParams:
    """How f and H are trained, and who chooses.

    Attributes:
        kind: ``f`` or ``h``: whose numbers the strategy sees.
        epochs: at most, of f and of H.
        lr, head_lr: of Adam.
        layers: hidden layers of H; the last one is its embedding.
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


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training ended: after how many epochs, and the share of rows right in the last one."""

    epochs: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class Factors:
    """What one forward pass gives of rows: ``features [n, d]`` and ``logits [n, N]``."""

    features: Array
    logits: Array

    def take(self, rows: NDArray[np.int64]) -> Factors:
        """Those of some rows."""
        return Factors(self.features[rows], self.logits[rows])


def seed_of(*parts: int | str) -> int:
    """One seed made of several numbers and words."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def card_of(
    params: LessonParams, images: Tensor, *, class_names: tuple[str, ...], family: str
) -> ModelCard:
    """Of the network before any training: classes, last layer, and the pixels' normalisation.

    Args:
        images: ``[n, H, W, 3]`` uint8, those that are learned from.
    """
    mean, std, _ = normalisation(images, family)
    with _seeded(params.seed):
        network = build_network(params.network, len(class_names))
    return describe(
        network,
        name=params.network,
        network_name=params.network,
        class_names=class_names,
        image_size=images.shape[1],
        family=family,
        mean=mean,
        std=std,
    )


def renew(network: nn.Module, card: ModelCard, seed: int) -> None:
    """Make all layers anew, by the seed alone; batch norms go on with what they have."""
    with _seeded(seed):
        fresh = build_network(card.network, card.n_classes)
    kept = tuple(
        f"{name}." for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    )
    state = fresh.state_dict()
    network.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith(kept)}, strict=False
    )


def train_f(
    network: nn.Module,
    card: ModelCard,
    images: Tensor,
    labels: Tensor,
    params: LessonParams,
    seed: int,
    tick: Tick,
) -> Fit:
    """Train f anew, in place, on ``images [n, H, W, 3]`` uint8; ``tick`` is told of every epoch."""
    mean = 255 * torch.tensor(card.mean, device=images.device)
    scale = 1 / (255 * torch.tensor(card.std, device=images.device))

    def logits_of(rows: Tensor) -> Tensor:
        found: Tensor = network(normalised(images[rows], mean, scale))
        return found

    anew = partial(renew, network, card)
    return _fit(network, logits_of, labels, params.lr, params, seed, anew, tick)


def train_h(
    factors: Factors, labels: Tensor, params: LessonParams, seed: int, tick: Tick
) -> tuple[Head, Fit]:
    """H of the factors of labelled rows; M is measured on these."""
    n_classes, feature_dim = factors.logits.shape[1], factors.features.shape[1]
    open_spec = HeadSpec(n_classes, feature_dim, params.layers)
    spec = replace(open_spec, M=open_spec.reading.measured(factors.logits).M)
    head = Head(spec).to(labels.device)
    features, logits = (
        torch.from_numpy(each).to(labels.device) for each in (factors.features, factors.logits)
    )

    def anew(seed: int) -> None:
        with _seeded(seed):
            head.load_state_dict(Head(spec).state_dict())

    def logits_of(rows: Tensor) -> Tensor:
        found: Tensor = head(features[rows], logits[rows])
        return found

    fit = _fit(head, logits_of, labels, params.head_lr, params, seed, anew, tick)
    return head.eval(), fit


def factors_of(sensing: Sensing, blocks: Iterable[Tensor]) -> Factors:
    """Of the images of some blocks, ``[n, H, W, 3]`` uint8 each: one forward pass of each image."""
    features, logits = [], []
    device = sensing.mean.device
    for block in blocks:
        for images in torch.split(block, FORWARD_ROWS):
            f, z = sensing(images.to(device))
            features.append(f.cpu().numpy())
            logits.append(z.cpu().numpy())
    return Factors(np.concatenate(features), np.concatenate(logits))


def seen_by(head: Head | None, factors: Factors) -> Seen:
    """What f makes of rows, or H where there is one."""
    if head is None:
        return Seen(softmax(factors.logits), factors.features)
    hidden, logits = head_factors(head, factors.features, factors.logits)
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
    """Rows of the pool to label next. No image is looked at again."""
    passes = partial(_passes, sensing, head, pool, seed)
    what = Pool(seen_by(head, pool), seen_by(head, labelled), passes)
    return STRATEGIES[params.strategy](what, n, np.random.default_rng(seed))


def _passes(sensing: Sensing, head: Head | None, pool: Factors, seed: int) -> Iterator[Array]:
    """Probabilities with dropout on the features; H reads the gradients of such a pass."""
    weight = sensing.weight.cpu().numpy()
    bias = 0 if sensing.bias is None else sensing.bias.cpu().numpy()
    for number in range(N_PASSES):
        generator = np.random.default_rng([seed, number])
        mask = generator.random(pool.features.shape, dtype=np.float32) >= DROPOUT
        features = pool.features * mask / np.float32(1 - DROPOUT)
        yield seen_by(head, Factors(features, features @ weight.T + bias)).probabilities


def _fit(
    module: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    labels: Tensor,
    lr: float,
    params: LessonParams,
    seed: int,
    anew: Callable[[int], None],
    tick: Tick,
) -> Fit:
    """Train until enough rows are right, or for ``params.epochs``."""
    n_rows, accuracy = len(labels), 0.0
    for epoch in range(params.epochs):
        if epoch == 0 or (epoch % PATIENCE == 0 and accuracy < HOPELESS):
            anew(seed_of(seed, "weights", epoch))
            optimiser = torch.optim.Adam(module.parameters(), lr=lr)
        module.train()
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n_rows))
        n_right, n_seen = torch.zeros((), dtype=torch.int64, device=labels.device), 0
        with _seeded(seed_of(seed, "dropout", epoch)):
            for rows in torch.split(order.to(labels.device), params.batch):
                if len(rows) > 1:  # batch norm has no statistics of a single image
                    logits = logits_of(rows)
                    loss = functional.cross_entropy(logits, labels[rows])
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
                    nn.utils.clip_grad_value_(module.parameters(), CLAMP)
                    optimiser.step()
                    n_right += (logits.detach().argmax(1) == labels[rows]).sum()
                    n_seen += len(rows)
        accuracy = int(n_right) / n_seen
        tick(1)
        if accuracy >= ENOUGH:
            break
    if not all(bool(torch.isfinite(value).all()) for value in module.parameters()):
        raise StageError(f"training diverged after {epoch + 1} epochs: lower the rate {lr:g}")
    return Fit(epoch + 1, accuracy)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's own generators from a seed, and restored after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
