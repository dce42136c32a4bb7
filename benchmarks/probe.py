"""Cost of the checks of a network, compared with an extraction of 10,000 images.

    python benchmarks/probe.py

An extraction checks its network in the driver, before anything is written, and in each worker. Both
are timed here as medians of several runs, beside the whole command with each executor.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, check_network
from stages.sensing.build import build_network
from stages.sensing.card import Precision
from stages.sensing.model import Sensing, describe, load_network, load_sensing
from stages.sensing.probe import sample_images
from stages.sensing.weights import save_weights

N_IMAGES, N_RUNS = 10_000, 5


def main() -> None:
    """Print seconds and shares for both precisions."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shape = (N_IMAGES, 32, 32, 3)
        np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        torch.manual_seed(0)
        network = build_network("resnet18", 10).eval()
        (folder / "w.safetensors").write_bytes(save_weights(network))
        for precision in ("fp32", "bf16"):
            _report(folder, network, precision)


def _report(folder: Path, network: torch.nn.Module, precision: Precision) -> None:
    card = describe(
        network, name="m", network_name="resnet18", class_names=(), image_size=32, family="x"
    )
    weights = str(folder / "w.safetensors")
    stage = Extraction(SourceSpec(str(folder / "x.npy"), "test", ""), card, weights, precision)
    images = sample_images(stage.source.open())
    driver = _median_s(lambda: check_network(stage))
    checked = _median_s(lambda: load_sensing(card, weights, "cpu", precision, images=images))
    bare = _median_s(lambda: Sensing(load_network(card, weights), card, precision))
    cost = driver + checked - bare
    print(f"{precision}: driver {1e3 * driver:.0f} ms, worker {1e3 * (checked - bare):.0f} ms")
    for executor in ("ray", "local"):
        whole = _median_s(partial(_extract, folder, precision, executor))
        print(f"  whole command, {executor}: {whole:.2f} s, of which {cost / whole:.1%}")


def _extract(folder: Path, precision: str, executor: str) -> None:
    shutil.rmtree(folder / "store", ignore_errors=True)
    words = f"extract --dataset {folder}/x.npy --network resnet18 --weights {folder}/w.safetensors"
    options = f"--executor {executor} --precision {precision} --store {folder}/store"
    command = [sys.executable, "-m", "cli.app", *words.split(), *options.split()]
    subprocess.run(command, check=True, capture_output=True)


def _median_s(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(N_RUNS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
