"""Time an epoch of head training beside its bare matrix products and the ordinary loop.

Run it from the repository: `python benchmarks/head_training.py`. Everything is H of Table 3 on r_x
at equal hyper-parameters. Each repeat runs one epoch of every contender in turn, so that whatever
else the machine does falls on all of them; the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cli.output import emit, table
from stages.introspection.head import HeadSpec
from stages.introspection.recipe import HeadParams, Precision
from stages.introspection.stacked import StackedMlp
from stages.introspection.train import TrainHead
from store.catalog import FeatureStore

BATCH_ROWS, WEIGHT_DECAY, LEARNING_RATE, MOMENTUM = 128, 5e-4, 0.1, 0.9


@dataclass(frozen=True)
class Data:
    """Stored features, logits and labels."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def spec(self) -> HeadSpec:
        """H of Table 3 for these."""
        return HeadSpec(self.logits.shape[1], self.features.shape[1])


@dataclass(frozen=True)
class Contender:
    """One way of training: ``epoch`` runs the next one; ``n_heads`` are trained by it."""

    name: str
    n_heads: int
    epoch: Callable[[], None]
    accuracy: Callable[[], float | None]


def synthetic(n_rows: int, n_classes: int = 10, width: int = 64) -> Data:
    """Non-negative features, the logits of a linear network, labels that it mostly gets right."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(n_rows, width))).astype(np.float32)
    weight = rng.normal(size=(n_classes, width)) / np.sqrt(width)
    logits = 4 * (features - features.mean(axis=0)) @ weight.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Data(features, logits.astype(np.float32), labels.astype(np.int64))


def stored(store: str, name: str, n_rows: int) -> Data:
    """The first rows of a feature set."""
    found = FeatureStore(store).open(name)
    labels = found.samples()["label"].to_numpy(np.int64)[:n_rows]
    return Data(found.read("features", 0, n_rows), found.read("logits", 0, n_rows), labels)


def dense_inputs(data: Data, dtype: torch.dtype = torch.float32) -> Tensor:
    """The scaled r_x of all rows, written out."""
    f, z = (torch.from_numpy(each).to(dtype) for each in (data.features, data.logits))
    return data.spec.reading.measured(data.logits).vectors(f, z).dense()


def sequential(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The head as anyone would write it."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, dtype=dtype), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def largest_difference(data: Data) -> float:
    """Between our gradients and autograd's on dense r_x, in float64, over the largest of them."""
    x = dense_inputs(Data(*(each[:BATCH_ROWS] for each in vars(data).values())), torch.float64)
    y = torch.from_numpy(data.labels[:BATCH_ROWS])
    network = sequential(data.spec.sizes, torch.float64)
    logits = network(x)
    slope = (logits.softmax(dim=1) - nn.functional.one_hot(y, logits.shape[1])).detach() / len(x)
    torch.autograd.backward(nn.functional.cross_entropy(logits, y))
    ours = StackedMlp(data.spec.sizes, 1, dtype=torch.float64, parameter_dtype=torch.float64)
    with torch.no_grad():
        ours.parameters.copy_(torch.cat([p.flatten() for p in network.parameters()]))
        hidden, _ = ours.forward(x[None])
        ours.backward(x[None], hidden, slope[None])
    gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert ours.parameters.grad is not None  # as StackedMlp makes it
    return float((gradients - ours.parameters.grad).abs().max() / gradients.abs().max())


def bare_products(data: Data) -> Contender:
    """Only the products: forward, weights' gradients, inputs' gradients but the first layer's."""
    layers = list(pairwise(data.spec.sizes))
    x = [torch.rand(BATCH_ROWS, n_in) for n_in, _ in layers]
    slopes = [torch.rand(BATCH_ROWS, n_out) for _, n_out in layers]
    weights = [torch.rand(n_out, n_in) for n_in, n_out in layers]

    def products(n: int) -> None:
        for index, weight in enumerate(weights):
            _ = x[index][:n] @ weight.T
            _ = slopes[index][:n].T @ x[index][:n]
            if index:
                _ = slopes[index][:n] @ weight

    def epoch() -> None:
        n_rows = len(data.labels)
        for start in range(0, n_rows, BATCH_ROWS):
            products(min(BATCH_ROWS, n_rows - start))

    return Contender("matrix products alone, fp32", 1, epoch, lambda: None)


def ours(data: Data, seeds: tuple[int, ...], precision: Precision) -> Contender:
    """The stage that `intro-pipe train-head` runs."""
    params = HeadParams(
        batch_rows=BATCH_ROWS,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        seeds=seeds,
        precision=precision,
    )
    stage = TrainHead(data.features, data.logits, data.labels, data.spec, params)
    state = stage.start()
    epochs = iter(range(params.epochs))
    return Contender(
        f"intro-pipe, {precision}, {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        len(seeds),
        lambda: void(stage.step(state, next(epochs), lambda _: None)),
        lambda: statistics.mean(stage.finish(state)[1]["train_accuracy"]),
    )


def ordinary(data: Data) -> Contender:
    """Dense r_x in a TensorDataset, a shuffling DataLoader, nn.Sequential and torch's SGD."""
    x, y = dense_inputs(data), torch.from_numpy(data.labels)
    torch.manual_seed(0)
    network = sequential(data.spec.sizes)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_ROWS, shuffle=True)

    def epoch() -> None:
        for inputs, labels in loader:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(inputs), labels))
            optimizer.step()

    def accuracy() -> float:
        with torch.inference_mode():
            return float((network(x).argmax(dim=1) == y).float().mean())

    return Contender("ordinary PyTorch loop, fp32, 1 seed", 1, epoch, accuracy)


def void(_: object) -> None:
    """Nothing, of anything."""


def seconds_per_epoch(contenders: list[Contender], repeats: int) -> list[list[float]]:
    """Seconds of each contender's epochs, after one that does not count."""
    times: list[list[float]] = [[] for _ in contenders]
    for repeat in range(repeats + 1):
        for contender, own in zip(contenders, times, strict=True):
            started = time.perf_counter()
            contender.epoch()
            if repeat:
                own.append(time.perf_counter() - started)
    return times


def rows_of(contenders: list[Contender], times: list[list[float]]) -> list[dict[str, Any]]:
    """A row for each contender; the bound and the ordinary loop are the first and the last."""
    heads = [
        statistics.median(own) / contender.n_heads
        for contender, own in zip(contenders, times, strict=True)
    ]
    return [
        {
            "trained by": contender.name,
            "s / head and epoch": seconds,
            "share of bound": heads[0] / seconds,
            "times ordinary": heads[-1] / seconds,
            "train accuracy": contender.accuracy(),
        }
        for contender, seconds in zip(contenders, heads, strict=True)
    ]


def main() -> None:
    """Check the gradients, time the epochs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", help="a labelled feature set; synthetic without")
    parser.add_argument("--store", default="intro-pipe-store", help="where it lies")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5, help="timed epochs of each")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    data = stored(asked.store, asked.features, asked.rows) if asked.features else None
    data = data or synthetic(asked.rows)
    difference = largest_difference(data)
    if difference > 1e-6:
        raise SystemExit(f"our gradients differ from autograd's by {difference:.1e}")
    contenders = [
        bare_products(data),
        ours(data, (0,), "fp32"),
        ours(data, (0, 1, 2), "fp32"),
        ours(data, (0, 1, 2), "bf16"),
        ordinary(data),
    ]
    rows = rows_of(contenders, seconds_per_epoch(contenders, asked.repeats))
    facts = {
        "sizes": "-".join(map(str, data.spec.sizes)),
        "rows": len(data.labels),
        "batch": BATCH_ROWS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "epochs": asked.repeats + 1,
        "gradients differ from autograd by": difference,
    }
    text = ", ".join(f"{name} {value}" for name, value in facts.items())
    emit({**facts, "results": rows}, f"{table(rows)}\n{text}", as_json=asked.json)


if __name__ == "__main__":
    main()
