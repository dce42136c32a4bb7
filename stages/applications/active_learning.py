"""Active learning as a loop of rounds: train, test, ask for labels; each one a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline.stage import Tick
from stages.applications.lesson import (
    FEWEST_CLASSES,
    Factors,
    LessonParams,
    card_of,
    choose,
    factors_of,
    renew,
    seed_of,
    seen_by,
    train_f,
    train_h,
)
from stages.errors import InputError
from stages.introspection.head import Head, HeadSpec
from stages.sensing.build import build_network, source_hash
from stages.sensing.card import ModelCard
from stages.sensing.labelled import LabelledImages, Openable, read_labelled
from stages.sensing.model import Sensing
from stages.sensing.weights import save_weights, weights_hash

VERSION = 1
"""Raised whenever the same run comes out otherwise."""

WEIGHTS, HEAD, LABELLED = "weights.safetensors", "head.safetensors", "labelled.parquet"


@dataclass(frozen=True, slots=True)
class RoundParams:
    """How many rounds, and how many rows are labelled.

    Attributes:
        rounds: trainings; the first is on ``start`` rows drawn by the seed, whoever asks after.
        query: rows that each round asks for; the last one asks for none.
    """

    rounds: int = 20
    query: int = 1000
    start: int = 100

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.query < 1 or self.start < 2:
            raise InputError(
                "active learning: expected rounds >= 1, query >= 1 and start >= 2, found "
                f"{self.rounds}, {self.query} and {self.start}"
            )

    @property
    def n_labelled(self) -> int:
        """Rows that are labelled in the end."""
        return self.start + (self.rounds - 1) * self.query

    def check(self, n_rows: int) -> None:
        """Raise ``InputError`` for a pool that is smaller than that."""
        if n_rows < self.n_labelled:
            raise InputError(
                f"the pool has {n_rows:,} labelled images, {self.rounds} rounds ask for "
                f"{self.n_labelled:,} ({self.start} + {self.rounds - 1} x {self.query}): ask for "
                "fewer"
            )


@dataclass(slots=True)
class RoundState:
    """What a round changes.

    Attributes:
        network: f, trained on the rows that were labelled before the last query.
        head: H, where there is one.
        rows: labelled places in the data, in the order in which they were asked for, ``[m]``.
        rounds: the round that each is first trained on, ``[m]``, counted from 0.
        scores: the strategy's, when it asked; NaN for the first ones, ``[m]``.
    """

    network: nn.Module
    head: Head | None
    rows: NDArray[np.int64]
    rounds: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class ActiveLearning:
    """The loop stage of one run: a strategy, a kind of model and a seed.

    Attributes:
        source: the pool; its labels are looked up for the rows that are asked for.
        tests: what each round is judged on, by name.
        watch: told of every epoch too; a run within another has no progress of its own to show.
    """

    lesson: LessonParams
    rounds: RoundParams
    source: Openable
    tests: Mapping[str, Openable]
    device: str = "cpu"
    watch: Tick = lambda _: None

    @property
    def name(self) -> str:
        """What progress calls it."""
        return "active-learning"

    @property
    def n_units(self) -> int:
        """Rounds."""
        return self.rounds.rounds

    @property
    def unit_name(self) -> str:
        """What a unit is called."""
        return "round"

    @property
    def rows_per_unit(self) -> int:
        """Epochs, of f and of H, at most."""
        return 2 * self.lesson.epochs

    def start(self) -> RoundState:
        """The first rows, which the seed alone determines, and a network of no training.

        Raises:
            InputError: the pool has fewer labelled rows than will be asked for.
        """
        n_rows = len(self._data.labels)
        self.rounds.check(n_rows)
        if self._card.n_classes < FEWEST_CLASSES:
            raise InputError(
                f"active learning: expected images of {FEWEST_CLASSES} classes at least, found "
                f"{self._card.n_classes}: there is nothing to tell apart"
            )
        generator = np.random.default_rng(seed_of(self.lesson.seed, "start"))
        rows = generator.permutation(n_rows)[: self.rounds.start]
        network = build_network(self.lesson.network, self._card.n_classes)
        renew(network, self._card, seed_of(self.lesson.seed, "network"))
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
        first = np.zeros(len(rows), np.int64)
        return RoundState(network, None, rows, first, np.full(len(rows), np.nan))

    def step(self, state: RoundState, unit: int, tick: Tick) -> dict[str, float]:
        """Train on what is labelled, test, and ask for the next rows; in place.

        Every image of pool and tests goes through the trained network once: M, H, the accuracies
        and the query are made of these factors.

        Returns:
            ``labelled``, ``epochs`` and ``train_accuracy`` of f and of H (``head_...``), and the
            accuracy of each on each test: ``f on clean``, ``H on clean``.
        """
        n_ticks = 0

        def heard(n: int) -> None:
            nonlocal n_ticks
            n_ticks += n
            tick(n)
            self.watch(n)

        lesson, seed = self.lesson, seed_of(self.lesson.seed, "round", unit)
        labelled = torch.from_numpy(state.rows).to(self.device)
        images, labels = self._data.images[labelled], self._data.labels[labelled]
        fit = train_f(state.network, self._card, images, labels, lesson, seed, heard)
        found = {"labelled": len(labels), "epochs": fit.epochs, "train_accuracy": fit.accuracy}
        sensing = Sensing(state.network, self._card).to(self.device)
        pool = factors_of(sensing, [self._data.images])
        tests = {name: factors_of(sensing, [data.images]) for name, data in self._tests.items()}
        state.head = None
        if lesson.kind == "h":
            state.head, fit = train_h(pool.take(state.rows), labels, lesson, seed, heard)
            found |= {"head_epochs": fit.epochs, "head_train_accuracy": fit.accuracy}
        for name, factors in tests.items():
            found[f"f on {name}"] = self._accuracy(None, name, factors)
            if state.head is not None:
                found[f"H on {name}"] = self._accuracy(state.head, name, factors)
        if unit + 1 < self.n_units:
            self._ask(state, unit, sensing, pool)
        heard(self.rows_per_unit - n_ticks)
        return found

    def _accuracy(self, head: Head | None, name: str, factors: Factors) -> float:
        prediction = seen_by(head, factors).probabilities.argmax(axis=1)
        return float((prediction == self._tests[name].labels.cpu().numpy()).mean())

    def _ask(self, state: RoundState, unit: int, sensing: Sensing, pool: Factors) -> None:
        """Take the rows that the strategy wants among the labelled ones."""
        left = np.setdiff1d(np.arange(len(pool.logits)), state.rows)
        query = choose(
            self.lesson,
            sensing,
            state.head,
            pool.take(left),
            pool.take(state.rows),
            self.rounds.query,
            seed_of(self.lesson.seed, "query", unit),
        )
        state.rows = np.concatenate([state.rows, left[query.rows]])
        state.rounds = np.concatenate([state.rounds, np.full(len(query.rows), unit + 1)])
        state.scores = np.concatenate([state.scores, query.scores])

    def save(self, state: RoundState) -> bytes:
        """Weights of f and H, and who was asked for when and why, as safetensors."""
        tensors = {f"network.{name}": _copy(x) for name, x in state.network.state_dict().items()}
        if state.head is not None:
            tensors |= {f"head.{name}": _copy(x) for name, x in state.head.state_dict().items()}
            tensors["M"] = torch.tensor(state.head.spec.M, dtype=torch.float64)
        for name in ("rows", "rounds", "scores"):
            tensors[name] = torch.from_numpy(getattr(state, name))
        data: bytes = save_tensors(tensors)
        return data

    def load(self, data: bytes) -> RoundState:
        """The state that ``save`` was given."""
        tensors = load_tensors(data)
        state = self.start()
        state.network.load_state_dict(_below("network.", tensors))
        if "M" in tensors:
            spec = HeadSpec(self._card.n_classes, self._card.feature_dim, self.lesson.layers)
            state.head = Head(replace(spec, M=tensors["M"].item())).to(self.device).eval()
            state.head.load_state_dict(_below("head.", tensors))
        for name in ("rows", "rounds", "scores"):
            setattr(state, name, tensors[name].numpy())
        return state

    def finish(self, state: RoundState) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
        """The last f and H, and ``labelled.parquet``: row of the source, round and score."""
        table = pa.table(
            {
                "row": self._data.rows.cpu().numpy()[state.rows],
                "round": state.rounds,
                "score": state.scores,
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        files = {WEIGHTS: save_weights(state.network), LABELLED: sink.getvalue()}
        facts: dict[str, Any] = {
            "network": replace(self._card, weights_sha256=weights_hash(state.network)).to_dict(),
            "lesson": asdict(self.lesson),
            "n_pool": len(self._data.labels),
            "n_tests": {name: len(data.labels) for name, data in self._tests.items()},
        }
        if state.head is not None:
            stacked = {name: _copy(x)[None] for name, x in state.head.state_dict().items()}
            files[HEAD] = save_tensors(stacked)
            facts["head"] = state.head.spec.to_dict()
        return files, facts

    @cached_property
    def _data(self) -> LabelledImages:
        return read_labelled(self.source.open()).to(self.device)

    @cached_property
    def _tests(self) -> dict[str, LabelledImages]:
        return {
            name: read_labelled(test.open()).to(self.device) for name, test in self.tests.items()
        }

    @cached_property
    def _card(self) -> ModelCard:
        """Of a network of no training: classes, normalisation, last layer."""
        source = self.source.open()
        names, family = source.class_names, source.family
        return card_of(self.lesson, self._data.images, class_names=names, family=family)


def code_of(network: str) -> dict[str, str]:
    """What a plan says of a user's network: the hash of its code."""
    found = source_hash(network)
    return {"code": found} if found else {}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
