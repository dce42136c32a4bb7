"""Measure what checksums and fsync cost an extraction.

Run it from the repository: `python benchmarks/protections.py`. Random images of 32 x 32 are
extracted in this process, in turn with all protections and without SHA-256, CRC of the images, and
fsync of files and folders; the chunks' own CRC-32C, which is part of the format, stays. Every other
round goes the other way about; the first one warms up and does not count. Printed are the medians
in images a second, and the median of the ratios of each pair with their range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from cli.output import emit, table
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, extraction_job
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.model import describe
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.disk import LocalDisk

N_ROWS = {"cnn2": 60_000, "resnet18": 10_000}


@contextmanager
def unprotected() -> Iterator[None]:
    """Disable checksums and fsync; only for measurements."""

    def put(_disk: LocalDisk, path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    with ExitStack() as stack:
        stack.enter_context(patch.object(LocalDisk, "put", put))
        stack.enter_context(patch.object(LocalDisk, "sync_folder", lambda _disk, _path: None))
        stack.enter_context(patch("store.seal.checksum", lambda _data: ""))
        stack.enter_context(patch("google_crc32c.extend", lambda _crc, _data: 0))
        yield


def images_per_s(images: Path, card: ModelCard, weights: Path, n_threads: int) -> float:
    """Extract once, into a new store."""
    with tempfile.TemporaryDirectory(dir=images.parent) as place:
        stage = Extraction(SourceSpec(str(images), "test", "", image_size=32), card, str(weights))
        journal = Journal.of(place, ["extract"])
        job = extraction_job(FeatureStore(place), stage, LocalExecutor(n_threads))
        return job.run(journal).report.rows_per_s


def measured(network: str, n_rounds: int, n_threads: int, folder: Path) -> dict[str, object]:
    """The medians of one network."""
    torch.manual_seed(0)
    module = build_network(network, 10).eval()
    classes = tuple(str(label) for label in range(10))
    card = describe(
        module, name="net", network_name=network, class_names=classes, image_size=32, family="noise"
    )
    weights, images = folder / "weights.safetensors", folder / "noise.npy"
    weights.write_bytes(save_weights(module))
    shape = (N_ROWS[network], 32, 32, 3)
    np.save(images, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pairs = []
    for number in range(n_rounds + 1):
        found = {}
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            with unprotected() if kind == "without" else nullcontext():
                found[kind] = images_per_s(images, card, weights, n_threads)
        pairs.append((found["with"], found["without"]))
    ratios = [with_all / without for with_all, without in pairs[1:]]
    return {
        "network": network,
        "with": round(statistics.median(pair[0] for pair in pairs[1:])),
        "without": round(statistics.median(pair[1] for pair in pairs[1:])),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs that count")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    for network in N_ROWS:
        with tempfile.TemporaryDirectory() as place:
            rows.append(measured(network, options.rounds, options.threads, Path(place)))
    emit(rows, table(rows, list(rows[0])), as_json=options.json)


if __name__ == "__main__":
    main()
