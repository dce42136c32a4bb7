"""Active learning as a loop of rounds: train, test, query labels; each ends in a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline.loop import history_of
from pipeline.work import Tick
from stages.active_learning.lesson import (
    FEWEST_CLASSES,
    Factors,
    Fit,
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
from stages.active_learning.result_names import WEIGHTS
from stages.errors import InputError, StageError
from stages.introspection.head import Head
from stages.introspection.head_spec import HeadSpec
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.device import require_device
from stages.sensing.labelled import LabelledImages, Openable, read_labelled, sample_id
from stages.sensing.model import Sensing, sensing_of
from stages.sensing.probe import N_ROWS
from stages.sensing.weights import cpu_copy, load_state, save_weights, weights_hash
from stages.typed import typed
from store.artifacts import Artifact

LEFT_OUT, ON, PREFIXES = "left out of ", " on ", ("", "head_")
"""Parts of the names of a round's metrics: see ``Round.metrics``."""

HEAD, LABELLED = "head.safetensors", "labelled.parquet"


@dataclass(frozen=True, slots=True)
class RoundParams:
    """Number of rounds and of labels.

    Attributes:
        rounds: number of trainings.
        query: rows that each round but the last one queries.
        start: rows of the first round, which the seed draws.
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
        """Number of rows that are labelled in the end."""
        return self.start + (self.rounds - 1) * self.query

    def check(self, n_rows: int) -> None:
        """Raise ``InputError`` if the pool has fewer rows."""
        if n_rows < self.n_labelled:
            raise InputError(
                f"the pool has {n_rows:,} labelled images, {self.rounds} rounds need "
                f"{self.n_labelled:,} ({self.start} + {self.rounds - 1} x {self.query}): use fewer "
                "rounds or queries"
            )


@dataclass(frozen=True, slots=True)
class Round:
    """What a round found; `metrics` and `of` convert it to the entry of a history and back.

    Attributes:
        labelled: number of rows that it was trained on.
        fits: how the training of f ended, and that of H if there is one.
        accuracies: predictor, "f" or "H", and name of a test -> accuracy.
        left_out: name of a test, or "pool" -> number of rows left out, because the network's output
            for them is not finite.
    """

    labelled: int
    fits: Annotated[tuple[Fit, ...], Field(min_length=1)]
    accuracies: Mapping[tuple[str, str], float]
    left_out: Mapping[str, int]

    def metrics(self) -> dict[str, float]:
        """Values by name, such as ``labelled``, ``head_epochs`` and ``f on clean``."""
        found: dict[str, float] = {"labelled": self.labelled}
        for prefix, fit in zip(PREFIXES, self.fits, strict=False):
            found |= {f"{prefix}epochs": fit.epochs, f"{prefix}train_accuracy": fit.accuracy}
        found |= {f"{who}{ON}{test}": value for (who, test), value in self.accuracies.items()}
        return found | {f"{LEFT_OUT}{name}": n for name, n in self.left_out.items() if n}

    @classmethod
    def of(cls, metrics: Mapping[str, float], what: str) -> Round:
        """The round with these metrics; raises ``InputError``, naming ``what`` they are from."""
        accuracies, left_out = {}, {}
        fits = [
            {"epochs": epochs, "accuracy": metrics.get(f"{prefix}train_accuracy")}
            for prefix in PREFIXES
            if (epochs := metrics.get(f"{prefix}epochs")) is not None
        ]
        for key, value in metrics.items():
            if key.startswith(LEFT_OUT):
                left_out[key.removeprefix(LEFT_OUT)] = value
            elif ON in key:
                predictor, _, test = key.partition(ON)
                accuracies[predictor, test] = value
        facts = {"fits": fits, "accuracies": accuracies, "left_out": left_out}
        return typed(cls, {"labelled": metrics.get("labelled"), **facts}, what)


@dataclass(slots=True)
class RoundState:
    """The state of a run, which a round changes.

    Attributes:
        network: f, trained on the rows that were labelled before the last query.
        head: H, if there is one.
        rows: places of the labelled rows in the data, in the order of the queries, ``[m]``.
        rounds: first round that trained on each row, counted from 0, ``[m]``.
        scores: score by which the strategy selected each row, ``[m]``; NaN for the first rows.
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
        lesson: how the rounds train, and how they select rows.
        rounds: number of rounds and of labels.
        source: the pool; its labels are looked up for the rows that are queried.
        tests: the test sets of each round, by name.
        device: where f and H are trained.
    """

    lesson: LessonParams
    rounds: RoundParams
    source: Openable
    tests: Mapping[str, Openable]
    device: str = "cpu"

    unit_name = "round"

    @property
    def n_units(self) -> int:
        """Number of rounds."""
        return self.rounds.rounds

    @property
    def rows_per_unit(self) -> int:
        """Maximum epochs of a round."""
        return self.lesson.max_epochs

    def start(self) -> RoundState:
        """The first rows, which the seed alone determines, and an untrained network.

        Raises:
            InputError: the pool has fewer labelled rows than will be queried, or torch cannot use
                the device.
        """
        require_device(self.device)
        n_rows = len(self._data.labels)
        self.rounds.check(n_rows)
        if self._card.n_classes < FEWEST_CLASSES:
            raise InputError(
                f"active learning: expected images of at least {FEWEST_CLASSES} classes, found "
                f"{self._card.n_classes}: there is nothing to distinguish"
            )
        generator = np.random.default_rng(seed_of(self.lesson.seed, "start"))
        rows = generator.permutation(n_rows)[: self.rounds.start]
        network = build_network(self.lesson.network, self._card.n_classes)
        seed = seed_of(self.lesson.seed, "network")
        renew(network, self._card, seed, self.lesson.initial.weights)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
        first = np.zeros(len(rows), np.int64)
        return RoundState(network, None, rows, first, np.full(len(rows), np.nan))

    def step(self, state: RoundState, unit: int, tick: Tick) -> dict[str, float]:
        """Train on the labelled rows, test, and query the next rows, in place.

        Every image of the pool and the tests goes through the trained network once: M, H, the
        accuracies and the query are computed from these factors.

        Returns:
            The metrics of a `Round`.
        """
        lesson, seed = self.lesson, seed_of(self.lesson.seed, "round", unit)
        labelled, names = torch.from_numpy(state.rows).to(self.device), self._names(state.rows)
        images, labels = self._data.take(labelled), self._data.labels[labelled]
        fit = train_f(state.network, self._card, images, labels, lesson, seed, tick, names)
        fits = [fit]
        sensing = sensing_of(
            state.network, self._card, images[:N_ROWS], lesson.precision, is_new=True
        )
        pool = factors_of(sensing, [self._data.images])
        state.head = None
        if lesson.kind == "h":
            state.head, fit = train_h(pool.take(state.rows), labels, lesson, seed, tick)
            fits.append(fit)
        accuracies, left_out = self._tested(sensing, state.head)
        if unit + 1 < self.n_units:
            left_out["pool"] = self._ask(state, unit, sensing, pool)
        return Round(len(labels), tuple(fits), accuracies, left_out).metrics()

    def _tested(
        self, sensing: Sensing, head: Head | None
    ) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
        """Accuracies of f and H on each test, and the number of its rows that are left out."""
        heads = {"f": None} if head is None else {"f": None, "H": head}
        accuracies, left_out = {}, dict.fromkeys(self._tests, 0)
        for test, data in self._tests.items():
            factors = factors_of(sensing, [data.images])
            for predictor, each in heads.items():
                accuracies[predictor, test], n = self._accuracy(each, test, factors)
                left_out[test] = max(left_out[test], n)
        return accuracies, left_out

    def _names(self, rows: NDArray[np.int64]) -> Callable[[int], str]:
        """Return a function from a place in ``rows`` to the id of its sample."""
        return lambda at: sample_id(self.source.open(), int(self._data.rows[rows[at]]))

    def _accuracy(self, head: Head | None, name: str, factors: Factors) -> tuple[float, int]:
        """Accuracy on a test set, and number of its rows left out because they are not finite."""
        seen = seen_by(head, factors)
        usable = seen.usable
        prediction = seen.probabilities[usable].argmax(axis=1)
        is_right = prediction == self._tests[name].labels.cpu().numpy()[usable]
        if not len(usable):
            raise StageError(
                f"active learning: the logits are not finite for any image of '{name}': use "
                f"another network, or a lower learning rate than {self.lesson.lr:g}"
            )
        return float(is_right.mean()), len(seen.probabilities) - len(usable)

    def _ask(self, state: RoundState, unit: int, sensing: Sensing, pool: Factors) -> int:
        """Add the rows that the strategy selects; returns the number of rows left out."""
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
        return query.n_left_out

    def save(self, state: RoundState) -> bytes:
        """Weights of f and H, and the labelled rows with rounds and scores, as safetensors."""
        tensors = {f"network.{name}": cpu_copy(x) for name, x in state.network.state_dict().items()}
        if state.head is not None:
            tensors |= {f"head.{name}": cpu_copy(x) for name, x in state.head.state_dict().items()}
            tensors["M"] = torch.tensor(state.head.spec.M, dtype=torch.float64)
        for name in ("rows", "rounds", "scores"):
            tensors[name] = torch.from_numpy(getattr(state, name))
        data: bytes = save_tensors(tensors)
        return data

    def load(self, data: bytes) -> RoundState:
        """The inverse of ``save``."""
        tensors = load_tensors(data)
        state = self.start()
        load_state(state.network, _below("network.", tensors))
        if "M" in tensors:
            spec = HeadSpec(self._card.n_classes, self._card.feature_dim, self.lesson.layers)
            state.head = Head(replace(spec, M=tensors["M"].item())).to(self.device).eval()
            state.head.load_state_dict(_below("head.", tensors))
        for name in ("rows", "rounds", "scores"):
            setattr(state, name, tensors[name].numpy())
        return state

    def finish(self, state: RoundState) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
        """The last f and H, and ``labelled.parquet``: row of the source, round and score.

        The facts are those of a `RunCard`, and the cards of f and H.
        """
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
            "lesson": self.lesson.facts(),
            "n_pool": len(self._data.labels),
            "n_tests": {name: len(data.labels) for name, data in self._tests.items()},
        }
        if state.head is not None:
            stacked = {name: cpu_copy(x)[None] for name, x in state.head.state_dict().items()}
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
        """The card of an untrained network: classes, normalisation, last layer."""
        source = self.source.open()
        names, family = source.class_names, source.family
        return card_of(self.lesson, self._data.images, class_names=names, family=family)


@dataclass(frozen=True, slots=True)
class RunCard:
    """The card of a finished run, as far as curves and reports need it.

    Attributes:
        lesson: how the run trained, and how it selected rows.
        n_pool: number of images in the pool.
        n_tests: number of images in each test.
        rounds: what the rounds found.
        seconds: time that each round took.
    """

    lesson: LessonParams
    n_pool: int
    n_tests: Mapping[str, int]
    rounds: Annotated[tuple[Round, ...], Field(min_length=1)]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, run: Artifact) -> RunCard:
        """The card of a run; raises ``NotFoundError``, ``DamagedError`` or ``InputError``."""
        what, history = f"the card of {run.name}", history_of(run)
        rounds = [Round.of(metrics, what) for metrics in history]
        seconds = [metrics.get("seconds") for metrics in history]
        return typed(cls, {**run.card(), "rounds": rounds, "seconds": seconds}, what)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
