"""What introspection costs at the width of ImageNet: 1,000 classes, 2,048 features.

Run it from the repository: `python benchmarks/wide.py`. A gradient has 2,048,000 numbers there.
Each task is done as intro-pipe does it, and on gradients that are written out, on as few rows as
fit: that time is scaled to as many rows as ours, and marked with ~. Of neighbours, distances and H
it is the matrix products alone; writing the gradients out comes on top. Both ways give the same
numbers, which is checked first. Repeats alternate, so that whatever else the machine does falls on
both; the table has medians. At the end a compact H is trained on generated features: of 1,000
classes in a space of 128 dimensions, behind a ReLU, with the logits of a good linear rule.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cli.output import emit, table
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.terminal import size
from stages.data.registry import SourceSpec
from stages.introspection.first_layer import PACE, LowRank, StackedGradients
from stages.introspection.head import load_head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import WEIGHTS_KEY, HeadTraining
from stages.introspection.neighbours import Neighbours
from stages.introspection.reading import Reading
from stages.introspection.stacked import StackedMlp
from stages.reflection.extraction import Extraction, extraction_job
from stages.reflection.named_layer import NamedLayer
from stages.reflection.rank_one import RankOneGradient
from stages.sensing.build import build_network
from stages.sensing.model import describe
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.encoding import encode_chunk
from store.schema import ArraySpec

N_CLASSES, WIDTH, HIDDEN, LATENT = 1000, 2048, 300, 128
SIZE = N_CLASSES * WIDTH
BATCH_ROWS, PART = 128, 32
LAYER_PARTS = 10
"""A full layer is timed with a tenth of its outputs: each costs the same."""

PARAMETER_BYTES = 12
"""In training: itself, its gradient and its momentum, in float32."""

NETWORK = """
from torch import nn

def net(n_classes):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048), nn.Linear(2048, n_classes)
    )
"""


@dataclass(frozen=True)
class Data:
    """Features ``(n, 2048)``, logits ``(n, 1000)`` and labels."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """``dense`` works on written-out r_x and does one in ``dense_parts`` of what ``ours`` does.

    That is the whole task, or one in ``parts`` of it.
    """

    name: str
    ours: Callable[[], object]
    dense: Callable[[], object]
    dense_parts: float
    parts: int = 1


def generated(n_rows: int, n_held_out: int) -> tuple[Data, Data]:
    """Training and other rows; the last layer is a ridge regression on rows of its own."""
    rng = np.random.default_rng(0)
    means = 0.4 * rng.standard_normal((N_CLASSES, LATENT), np.float32)
    mixing = rng.standard_normal((LATENT, WIDTH), np.float32) / np.float32(LATENT**0.5)

    def draw(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        labels = rng.integers(0, N_CLASSES, n)
        latent = means[labels] + rng.standard_normal((n, LATENT), np.float32)
        return np.maximum(latent @ mixing - np.float32(0.3), 0), latent, labels

    features, latent, _ = draw(8000)
    centre, centre_latent = features.mean(axis=0), latent.mean(axis=0)
    spread = (features - centre).T @ (features - centre) / len(features)
    spread += 0.1 * np.trace(spread) / WIDTH * np.eye(WIDTH, dtype=np.float32)
    products = (features - centre).T @ (latent - centre_latent) / len(features)
    weight = means @ np.linalg.solve(spread, products).T
    bias = means @ centre_latent - (means**2).sum(axis=1) / 2 - weight @ centre

    def data(n: int) -> Data:
        features, _, labels = draw(n)
        return Data(features, features @ weight.T + bias, labels)

    return data(n_rows), data(n_held_out)


def gradients(data: Data, rows: slice) -> RankOneGradient[Tensor]:
    """The scaled r_x of some rows, in factors."""
    f, z = (torch.from_numpy(each[rows]) for each in (data.features, data.logits))
    return Reading(N_CLASSES, WIDTH).measured(data.logits).vectors(f, z)


def encoded(vectors: NDArray[np.float32]) -> bytes:
    """Rows as the store writes them."""
    return encode_chunk(ArraySpec("x", vectors.shape[1:]), vectors, len(vectors))


def first_layer_step(rows: RankOneGradient[Tensor], rank: int | None, n_outputs: int) -> Any:
    """A step's work in H's first layer, of low rank or full: outputs, then gradients."""
    sizes = (rank or SIZE, n_outputs)
    mlp = StackedMlp(sizes, 1, factors=(N_CLASSES, WIDTH) if rank else ())
    assert rows.offset is not None  # what minmax gives
    inputs = StackedGradients(rows.delta[None], rows.features[None], rows.offset[None])

    @torch.no_grad()
    def step() -> None:
        found, logits = mlp.forward(inputs)
        mlp.backward(inputs, found, logits)

    return step


def dense_layer_step(rows: RankOneGradient[Tensor], n_outputs: int) -> Callable[[], None]:
    """The same for a full layer whose inputs are written out."""
    mlp = StackedMlp((SIZE, n_outputs), 1)
    inputs = rows.dense()[None]

    @torch.no_grad()
    def step() -> None:
        found, logits = mlp.forward(inputs)
        mlp.backward(inputs, found, logits)

    return step


def extraction(folder: Path, n_rows: int, layer: NamedLayer | None) -> Callable[[], None]:
    """`intro-pipe extract` through a small network with wide features."""
    images = folder / f"{n_rows}.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (n_rows, 32, 32, 3), np.uint8))
    (folder / "wide_net.py").write_text(NETWORK)
    name = f"{folder}/wide_net.py:net"
    torch.manual_seed(0)
    network = build_network(name, N_CLASSES).eval()
    card = describe(
        network,
        name="net",
        network_name=name,
        class_names=tuple(map(str, range(N_CLASSES))),
        image_size=32,
        family="noise",
    )
    weights = folder / "weights.safetensors"
    weights.write_bytes(save_weights(network))
    source = SourceSpec(str(images), "test", "", image_size=32)
    stage = Extraction(source, replace(card, M=1.0), str(weights), layer=layer)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            job = extraction_job(FeatureStore(place), stage, LocalExecutor(1))
            job.run(Journal.of(place, ["extract"]))

    return run


def tasks_of(data: Data, folder: Path, rank: int) -> list[Task]:
    """Everything that is done with gradients."""
    n, n_queries = len(data.labels), 256
    n_paired = min(2000, n)
    every, part, batch = (gradients(data, slice(0, k)) for k in (n, PART, BATCH_ROWS))
    votes = Neighbours.of(data.features, data.logits, data.labels, Reading(N_CLASSES, WIDTH), k=10)
    queries = every.take(slice(0, n_queries))
    some = every.take(slice(0, n_paired))

    written_out = part.dense()
    n_pairs = PART * PART
    n_some = HIDDEN // LAYER_PARTS
    return [
        Task(
            "extract, 2,000 images",
            extraction(folder, 2000, None),
            extraction(folder, PART, NamedLayer("3")),
            2000 / PART,
        ),
        Task(
            f"encode {n:,} rows for the store",
            lambda: [encoded(data.features), encoded(data.logits)],
            lambda: encoded(part.dense().numpy()),
            n / PART,
        ),
        Task(
            f"10 nearest of {n:,}, {n_queries} queries",
            lambda: votes.nearest(queries),
            lambda: written_out @ written_out.T,
            n * n_queries / n_pairs,
        ),
        Task(
            f"distances of {n_paired:,} rows, all pairs",
            some.squared_distances,
            lambda: written_out @ written_out.T,
            n_paired**2 / n_pairs,
        ),
        Task(
            f"H, full first layer, a step of {BATCH_ROWS}",
            first_layer_step(batch, None, n_some),
            dense_layer_step(part, n_some),
            BATCH_ROWS / PART,
            LAYER_PARTS,
        ),
        Task(
            f"H, first layer of rank {rank}, a step of {BATCH_ROWS}",
            first_layer_step(batch, rank, HIDDEN),
            dense_layer_step(part, n_some),
            LAYER_PARTS * BATCH_ROWS / PART,
        ),
    ]


def seconds_of(tasks: list[Task], repeats: int) -> list[dict[str, Any]]:
    """Median seconds of both ways, alternating, after one round that does not count."""
    times: dict[str, tuple[list[float], list[float]]] = {task.name: ([], []) for task in tasks}
    for repeat in range(repeats + 1):
        for task in tasks:
            for work, own in zip((task.ours, task.dense), times[task.name], strict=True):
                started = time.perf_counter()
                work()
                if repeat:
                    own.append(time.perf_counter() - started)
    rows = []
    for task in tasks:
        ours, dense = (statistics.median(own) for own in times[task.name])
        rows.append(
            {
                "task": task.name,
                "in factors, s": f"{'~' * (task.parts > 1)}{ours * task.parts:,.3f}",
                "written out, s": f"~{dense * task.dense_parts * task.parts:,.1f}",
                "times": f"{dense * task.dense_parts / ours:,.0f}",
            }
        )
    return rows


def bytes_of(data: Data, rank: int) -> list[dict[str, str]]:
    """What is kept: measured on disk for 2,000 rows, else counted."""
    n = min(2000, len(data.labels))
    stored = [encoded(each[:n]) for each in (data.features, data.logits)]
    dense = len(encoded(gradients(data, slice(0, PART)).dense().numpy())) / PART
    ours = sum(map(len, stored)) / n
    full = HeadSpec(N_CLASSES, WIDTH, (HIDDEN, 100))
    compact = replace(full, rank=rank)
    rows = [
        ("r_x of a row", 4 * (N_CLASSES + WIDTH + 1), 4 * SIZE),
        ("50,000 rows on disk", 50_000 * ours, 50_000 * dense),
        ("1,281,167 rows on disk", 1_281_167 * ours, 1_281_167 * dense),
        (f"a batch of {BATCH_ROWS}", 4 * BATCH_ROWS * (N_CLASSES + WIDTH), 4 * BATCH_ROWS * SIZE),
        (
            f"H in training, rank {rank} or full",
            PARAMETER_BYTES * compact.n_parameters,
            PARAMETER_BYTES * full.n_parameters,
        ),
    ]
    return [
        {
            "bytes": name,
            "in factors": size(a),
            "written out": size(b),
            "times": f"{b / a:,.0f}",
        }
        for name, a, b in rows
    ]


@torch.no_grad()
def largest_difference(data: Data, rank: int) -> float:
    """Between both ways in float64, over the largest of the written-out numbers."""
    f, z = (torch.from_numpy(each[:8]).double() for each in (data.features, data.logits))
    rows = Reading(N_CLASSES, WIDTH).measured(data.logits).vectors(f, z)
    dense = rows.dense()
    torch.manual_seed(0)
    weight = torch.randn(3, SIZE, dtype=torch.float64)
    pairs = LowRank(rank, N_CLASSES, WIDTH).double()
    matrix = torch.einsum("rc,rd->rcd", pairs.classes[:3], pairs.features[:3]).flatten(1)
    compared = [
        (rows.squared_distances(), ((dense[:, None] - dense[None]) ** 2).sum(dim=2)),
        (rows.project(weight), dense @ weight.T),
        (pairs(rows)[:, :3], dense @ matrix.T * (PACE / SIZE**0.5)),
    ]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in compared)


def trained(data: Data, held_out: Data, rank: int, epochs: int) -> dict[str, Any]:
    """A compact H on the generated rows, and what it says of others."""
    spec = HeadSpec(N_CLASSES, WIDTH, (), scaling="maxabs", rank=rank)
    params = HeadParams(epochs=epochs, learning_rate=0.3, weight_decay=5e-4)
    stage = HeadTraining(data.features, data.logits, data.labels, spec, params)
    started, state = time.perf_counter(), stage.start()
    for epoch in range(epochs):
        stage.step(state, epoch, lambda _: None)
    seconds = time.perf_counter() - started
    files, facts = stage.finish(state)
    head = load_head(HeadSpec.from_dict(facts["spec"]), files[WEIGHTS_KEY])
    said = predict_probabilities(head, held_out.features, held_out.logits)
    return {
        "H": f"rank {rank}-{N_CLASSES}",
        "parameters": f"{spec.n_parameters:,}",
        "rows": f"{len(data.labels):,}",
        "epochs": epochs,
        "s / epoch": seconds / epochs,
        "train accuracy": facts["train_accuracy"][0],
        "test accuracy": float((said.argmax(axis=1) == held_out.labels).mean()),
        "f on the test rows": float((held_out.logits.argmax(axis=1) == held_out.labels).mean()),
    }


def main() -> None:
    """Check the numbers, time both ways, train H, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5, help="timed ones; 0 to only train H")
    parser.add_argument("--epochs", type=int, default=6, help="of H at the end; 0 for none")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data, held_out = generated(asked.rows, 5000)
    difference = largest_difference(data, asked.rank)
    if difference > 1e-9:
        raise SystemExit(f"factors and written-out gradients differ by {difference:.1e}")
    found: dict[str, Any] = {"threads": 1, "torch": torch.__version__, "differ by": difference}
    if asked.repeats:
        found["bytes"] = bytes_of(data, asked.rank)
        with tempfile.TemporaryDirectory() as place:
            found["seconds"] = seconds_of(tasks_of(data, Path(place), asked.rank), asked.repeats)
    if asked.epochs:
        found["training"] = [trained(data, held_out, asked.rank, asked.epochs)]
    tables = [table(rows) for rows in found.values() if isinstance(rows, list)]
    text = "\n\n".join([*tables, f"both ways differ by {difference:.1e}; one thread"])
    emit(found, text, as_json=asked.json)


if __name__ == "__main__":
    main()
