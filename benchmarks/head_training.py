"""One epoch of H on 50,000 rows of 640, compared with its matrix products and the usual loop.

H is that of Table 3, 640-300-100-10, with batches of 128, equal hyper-parameters and synthetic
rows. Ours is what `intro-pipe train-head` runs; with three seeds it trains three heads at once, and
rows/s counts a row for each of them. The products alone bound what a CPU can do in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measuring import Contender, Once, WrongNumbersError, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from stages.introspection.head_params import HeadParams, Precision
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import HeadTraining
from stages.introspection.stacked import StackedMlp

BATCH_ROWS, WEIGHT_DECAY, LEARNING_RATE, MOMENTUM = 128, 5e-4, 0.1, 0.9
TOLERANCE = 1e-6
"""Largest difference of our gradients from autograd's in float64, relative to the largest one."""


@dataclass(frozen=True)
class Data:
    """Features, logits and labels as stored."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def spec(self) -> HeadSpec:
        """H of Table 3 for these rows."""
        return HeadSpec(self.logits.shape[1], self.features.shape[1])


def synthetic(n_rows: int, n_classes: int = 10, width: int = 64) -> Data:
    """Non-negative features, the logits of a linear network, labels that it mostly gets right."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(n_rows, width))).astype(np.float32)
    weight = rng.normal(size=(n_classes, width)) / np.sqrt(width)
    logits = 4 * (features - features.mean(axis=0)) @ weight.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Data(features, logits.astype(np.float32), labels.astype(np.int64))


def dense_inputs(data: Data, dtype: torch.dtype = torch.float32) -> Tensor:
    """The scaled r_x of all rows, dense."""
    f, z = (torch.from_numpy(each).to(dtype) for each in (data.features, data.logits))
    return data.spec.reading.measured(data.logits).vectors(f, z).dense()


def sequential(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The head as plain PyTorch code."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, dtype=dtype), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def largest_difference(data: Data) -> float:
    """Largest difference of our gradients from autograd's on dense r_x in float64, relative."""
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
    assert ours.parameters.grad is not None  # as in StackedMlp
    return float((gradients - ours.parameters.grad).abs().max() / gradients.abs().max())


def checked(n_rows: int) -> Data:
    """The rows; raises ``WrongNumbersError`` if our gradients differ from autograd's."""
    data = synthetic(n_rows)
    if not (difference := largest_difference(data)) <= TOLERANCE:
        raise WrongNumbersError(f"our gradients differ from autograd's by {difference:.1e}")
    return data


def bare_products(n_rows: int, _: Path) -> Once:
    """Only the matrix products: forward, gradients of weights, and of inputs except the first
    layer's."""
    layers = list(pairwise(synthetic(2).spec.sizes))
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
        for start in range(0, n_rows, BATCH_ROWS):
            products(min(BATCH_ROWS, n_rows - start))

    return epoch


def ours(
    seeds: tuple[int, ...], precision: Precision, n_rows: int, _: Path, device: str = "cpu"
) -> Once:
    """The stage that `intro-pipe train-head` runs."""
    data = checked(n_rows)
    params = HeadParams(
        batch_rows=BATCH_ROWS,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        seeds=seeds,
        precision=precision,
    )
    stage = HeadTraining(data.features, data.logits, data.labels, data.spec, params, device)
    state = stage.start()
    epochs = iter(range(params.epochs))

    def epoch() -> None:
        stage.step(state, next(epochs), lambda _: None)

    return epoch


def ordinary(n_rows: int, _: Path, device: str = "cpu") -> Once:
    """Dense r_x in a TensorDataset, a shuffling DataLoader, nn.Sequential and torch's SGD."""
    data = synthetic(n_rows)
    x, y = dense_inputs(data), torch.from_numpy(data.labels)
    torch.manual_seed(0)
    network = sequential(data.spec.sizes).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_ROWS, shuffle=True)

    def epoch() -> None:
        for inputs, labels in loader:
            optimizer.zero_grad()
            logits = network(inputs.to(device))
            torch.autograd.backward(nn.functional.cross_entropy(logits, labels.to(device)))
            optimizer.step()

    return epoch


PRODUCTS, LOOP = "matrix products alone, fp32", "usual loop, fp32, 1 seed"


def contenders(sizes: Sizes) -> list[Contender]:
    """The bound, ours with one seed and with three, and the loop."""
    n = sizes.pick(2_000, 50_000)
    three = (0, 1, 2)
    return [
        Contender(PRODUCTS, partial(bare_products, n), n),
        Contender("ours, fp32, 1 seed", partial(ours, (0,), "fp32", n), n),
        Contender("ours, fp32, 3 seeds", partial(ours, three, "fp32", n), 3 * n),
        Contender("ours, bf16, 3 seeds", partial(ours, three, "bf16", n), 3 * n),
        Contender(LOOP, partial(ordinary, n), n),
    ]


PART = Part(
    "head-training",
    "Training H",
    __doc__,
    contenders,
    columns=("rows/s", "seconds", "from", "to", "cpu s", "memory"),
    figures=(
        Figure(
            "products / ours, fp32, 1 seed", [PRODUCTS], "ours, fp32, 1 seed", wall_per_row, 0.6
        ),
        Figure("usual loop / ours, fp32, 1 seed", [LOOP], "ours, fp32, 1 seed", wall_per_row),
        Figure("usual loop / ours, bf16, 3 seeds", [LOOP], "ours, bf16, 3 seeds", wall_per_row),
    ),
)
