"""The paper's procedure: one image at a time through a ResNet-18, one backward pass each, stored.

`N passes` runs one backward pass for each of the 10 classes, on one forward pass. `frozen` computes
the gradient of the last layer alone, as a careful programmer would; the others run backward through
the whole network. Ours is `extract`, in the same process, which stores both factors instead of r_x.
The weights are untrained: only speed counts here. The numbers of rows differ: compare rows/s.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import images
from benchmarks.measuring import Contender, Once, WrongNumbersError, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, extraction_job
from stages.reflection.rank_one import last_layer_gradient
from stages.sensing.card import Precision
from store.catalog import FeatureStore

M, N_CLASSES, WIDTH, CHECKED = 3.0, 10, 64, 20
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}
"""Largest difference from the closed form on the plain network, over the largest gradient."""

Passes = Literal["one pass", "N passes", "one pass, frozen"]


def expected(made: images.Made) -> NDArray[np.float32]:
    """``(2/N)(z - M) ⊗ f`` of the first rows, from the plain network in float32."""
    network, inputs = made.network(), list[torch.Tensor]()
    network.linear.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        logits = network(made.pixels(0, CHECKED))
    found = (2 / N_CLASSES) * (logits - M)[:, :, None] * inputs[0][:, None, :]
    return found.flatten(1).numpy()


def check(found: NDArray[Any], made: images.Made, precision: Precision = "fp32") -> None:
    """Raise ``WrongNumbersError`` if the first rows differ from the closed form."""
    right = expected(made)
    difference = np.abs(found[:CHECKED] - right).max() / np.abs(right).max()
    if not difference <= TOLERANCES[precision]:
        raise WrongNumbersError(f"differs from the closed form by {difference:.1e}")


def one_by_one(passes: Passes, n_rows: int, folder: Path) -> Once:
    """Backward passes, one image at a time; dense r_x into a numpy array."""
    made = images.make(folder.with_name(f"{folder.name}-images"), n_rows)
    network, pixels = made.network(), made.pixels(0, n_rows)
    if passes == "one pass, frozen":
        network.requires_grad_(False)
    network.linear.requires_grad_(True)
    path = folder / "r_x.npy"

    def once() -> None:
        out = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, N_CLASSES * WIDTH))
        for row in range(n_rows):
            logits = network(pixels[row : row + 1])[0]
            if passes == "N passes":
                out[row] = _stacked(network, logits)
            else:
                network.zero_grad()
                ((logits - M) ** 2).mean().backward()
                out[row] = network.linear.weight.grad.flatten().numpy()
        out.flush()

    once()
    check(np.load(path, mmap_mode="r"), made)
    return once


def _stacked(network: nn.Module, logits: torch.Tensor) -> NDArray[np.float32]:
    """Row ``j`` of the gradient against class ``j``, from a backward pass for each (Eq. 5)."""
    rows = []
    for label in range(N_CLASSES):
        network.zero_grad()
        target = torch.zeros(N_CLASSES)
        target[label] = M
        ((logits - target) ** 2).mean().backward(retain_graph=label < N_CLASSES - 1)
        rows.append(network.linear.weight.grad[label].clone())
    return torch.cat(rows).numpy()


def ours(precision: Precision, n_rows: int, folder: Path) -> Once:
    """`extract` in this process; the network is loaded again in each run."""
    made = images.make(folder.with_name(f"{folder.name}-images"), n_rows)
    source = SourceSpec(str(made.dataset), "test", "", image_size=32)
    stage = Extraction(source, made.card(), str(made.weights), precision, shard_rows=n_rows // 5)

    def once() -> None:
        journal = Journal.of(str(folder), ["extract"])
        extraction_job(FeatureStore(str(folder)), stage, LocalExecutor()).run(journal)

    once()
    found = next(FeatureStore(str(folder)).feature_sets())
    f, z = (found.read(name, 0, CHECKED) for name in ("features", "logits"))
    check(last_layer_gradient(f, z, M=M).dense(), made, precision)
    return once


def contenders(sizes: Sizes) -> list[Contender]:
    """Ours in both precisions, and the methods with one image at a time."""
    many, some, few = sizes.pick(200, 10_000), sizes.pick(20, 500), sizes.pick(20, 100)
    return [
        Contender("ours, fp32", partial(ours, "fp32", many), many),
        Contender("ours, bf16", partial(ours, "bf16", many), many),
        Contender("one pass, frozen", partial(one_by_one, "one pass, frozen", some), some),
        Contender("one pass", partial(one_by_one, "one pass", some), some),
        Contender("N passes", partial(one_by_one, "N passes", few), few),
    ]


PART = Part(
    "paper-way",
    "The paper's own way",
    __doc__,
    contenders,
    columns=("rows/s", "seconds", "from", "to", "cpu s", "memory", "on disk"),
    figures=(
        Figure("one pass over ours, fp32", ["one pass"], "ours, fp32", wall_per_row, 10),
        Figure("one pass over ours, bf16", ["one pass"], "ours, bf16", wall_per_row, 30),
        Figure("N passes over ours, fp32", ["N passes"], "ours, fp32", wall_per_row, 60),
        Figure(
            "one pass, frozen, over ours, fp32", ["one pass, frozen"], "ours, fp32", wall_per_row
        ),
    ),
)
