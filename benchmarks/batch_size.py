"""Measure how many images a core is best given at once.

Run it from the repository: `python benchmarks/batch_size.py`. Printed are images a second of a
core's time at each batch size, the best of some rounds in turn, the size that `extract` chooses,
and which share of the best it reaches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cli.output import emit, table
from pipeline.executors import LocalExecutor
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, fitted
from stages.sensing.build import build_network
from stages.sensing.card import Precision
from stages.sensing.model import Sensing, describe

IMAGE_SIZE = {"cnn2": 32, "resnet18": 32, "resnet50": 32, "vgg16": 32, "torchvision:resnet18": 224}
ROWS = (4, 8, 16, 32, 64, 128)
N_IMAGES = 128
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def images_per_s(sensing: Sensing, images: torch.Tensor, batch_rows: int) -> float:
    """CPU time of this thread, which is the only one."""
    began = time.thread_time()
    for batch in images.split(batch_rows):
        sensing(batch)
    return len(images) / (time.thread_time() - began)


def measured(name: str, precision: Precision, n_rounds: int, folder: Path) -> dict[str, object]:
    """The rates of one network."""
    size = IMAGE_SIZE[name]
    network = build_network(name, 10).eval()
    classes = tuple(str(label) for label in range(10))
    card = describe(
        network, name="net", network_name=name, class_names=classes, image_size=size, family="noise"
    )
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, size, size, 3), dtype=np.uint8)
    np.save(folder / "noise.npy", images)
    source = SourceSpec(str(folder / "noise.npy"), "test", "", image_size=size)
    chosen = fitted(Extraction(source, card, "", precision), LocalExecutor(1), 1).batch_rows
    sensing = Sensing(network, card, precision)
    rates = dict.fromkeys(ROWS, 0.0)
    for _ in range(n_rounds):
        for rows in ROWS:
            rates[rows] = max(rates[rows], images_per_s(sensing, torch.from_numpy(images), rows))
    assert chosen is not None  # as `fitted` guarantees
    return {
        "network": name,
        "precision": precision,
        **{str(rows): round(rate) for rows, rate in rates.items()},
        "chosen": chosen,
        "of the best": round(rates[chosen] / max(rates.values()), 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(IMAGE_SIZE), choices=list(IMAGE_SIZE))
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        rows = [
            measured(name, precision, options.rounds, Path(place))
            for name in options.networks
            for precision in PRECISIONS
        ]
    emit(rows, table(rows, list(rows[0])), as_json=options.json)


if __name__ == "__main__":
    main()
