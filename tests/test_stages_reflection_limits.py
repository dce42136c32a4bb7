"""Extraction at its limits: lack of memory, and images that no network can compute."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract

from pipeline.errors import ResourceError, RunFailedError
from pipeline.executors import LocalExecutor
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction, fitted
from stages.reflection.named_layer import NamedLayer
from stages.sensing.build import build_network
from stages.sensing.card import Normalisation
from stages.sensing.model import describe
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.verify import verify_feature_set

POISON, HOLLOW = 250, 251
"""Values of the first pixel of images that make the network raise, or return NaN."""

NETWORK = f"""
import torch
from torch import nn

class Picky(nn.Module):
    most_rows = 1_000

    def __init__(self, n_classes):
        super().__init__()
        self.last = nn.Linear(48, n_classes)

    def forward(self, pixels):
        first = (pixels[:, 0, 0, 0] * 255).round()
        if (first == {POISON}).any():
            raise RuntimeError("this image is too much for me\\nreally")
        if len(pixels) > self.most_rows:
            with open(__file__ + ".log", "a") as log:
                print(len(pixels), file=log)
            torch.empty(2**48)
        hidden = nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
        hidden = torch.where(first[:, None] == {HOLLOW}, torch.nan, hidden)
        return self.last(hidden)

class Colourful(Picky):
    def forward(self, pixels):
        if (pixels.flatten(1).std(1) < 1e-4).any():
            raise RuntimeError("this image has one colour")
        return super().forward(pixels)

class Greedy(Picky):
    most_rows = 5

class Wide(nn.Sequential):
    def __init__(self, n_classes=10):
        super().__init__(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048), nn.Linear(2048, n_classes)
        )
"""


def write_images(folder: Path, n_rows: int = 40, **first_pixels: list[int]) -> Path:
    """Random images; ``POISON=[3]`` makes row 3 one of those."""
    images = np.random.default_rng(0).integers(0, 200, (n_rows, 32, 32, 3), np.uint8)
    for name, rows in first_pixels.items():
        images[rows, 0, 0, 0] = globals()[name]
    np.savez(folder / "images.npz", images=images, labels=np.arange(n_rows) % 10)
    return folder / "images.npz"


def stage_of(
    folder: Path, factory: str = "Picky", batch_rows: int = 8, **pixels: list[int]
) -> Extraction:
    """A stage of forty images, twenty in a shard, under a network of the user's own."""
    (folder / "mine.py").write_text(NETWORK)
    torch.manual_seed(0)
    network = build_network(f"{folder}/mine.py:{factory}", 10).eval()
    card = describe(
        network,
        name="mine",
        network_name=f"{folder}/mine.py:{factory}",
        class_names=tuple(map(str, range(10))),
        image_size=32,
        family="images",
        normalisation=Normalisation((0, 0, 0), (1, 1, 1)),
        last_layer="last",
    )
    (folder / "mine.safetensors").write_bytes(save_weights(network))
    source = SourceSpec(str(write_images(folder, **pixels)), "test", "")
    weights = str(folder / "mine.safetensors")
    return Extraction(source, card, weights, shard_rows=20, batch_rows=batch_rows)


def run(stage: Extraction, place: Path) -> FeatureSet:
    return extract(FeatureStore(str(place)).prepare(), stage)


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_poison_images_are_rows_of_nan_and_their_batches_come_out(
    tmp_path: Path, batch_rows: int
) -> None:
    bad = [0, 5, 6, 39]
    found = run(stage_of(tmp_path, batch_rows=batch_rows, POISON=bad), tmp_path / "store")
    logits, samples = found.read("logits"), found.samples()
    expected = run(stage_of(tmp_path), tmp_path / "clean").read("logits")
    good = np.delete(np.arange(40), bad)
    np.testing.assert_allclose(logits[good], expected[good], atol=1e-5)
    assert np.isnan(logits[bad]).all()
    assert np.isnan(found.read("features")[bad]).all()
    reason = "the network fails: RuntimeError: this image is too much for me"
    assert samples["status"].tolist() == [reason if row in bad else "ok" for row in range(40)]
    assert samples["prediction"][bad].tolist() == [-1] * 4
    listed = {row: why for r in found.shard_set.receipts() for row, why in r.failed.items()}
    assert listed == dict.fromkeys(bad, reason)
    assert list(verify_feature_set(found)) == []


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_a_network_that_fails_for_every_image_is_reported(tmp_path: Path, batch_rows: int) -> None:
    stage = stage_of(tmp_path, batch_rows=batch_rows, POISON=list(range(40)))
    with pytest.raises(RunFailedError, match=r"2 of 2 shards failed, 0 .*RuntimeError: this image"):
        run(stage, tmp_path / "store")
    (found,) = FeatureStore(str(tmp_path / "store")).feature_sets()
    assert found.shard_set.done() == set()


def test_a_batch_without_one_good_image_fails_its_shard_alone(tmp_path: Path) -> None:
    """As when the GPU is lost during a run: rows that only seem to be bad must not be kept."""
    with pytest.raises(
        RunFailedError, match=r"1 of 2 shards failed, 1 .*shard 0: RuntimeError: th"
    ):
        run(stage_of(tmp_path, POISON=list(range(8, 16))), tmp_path / "store")


def test_poison_everywhere_stops_the_run_by_the_limit_on_bad_samples(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailedError, match="14 of 40 rows failed, more than 1%: 14 x the network fails: "
    ):
        run(stage_of(tmp_path, POISON=list(range(0, 40, 3))), tmp_path / "store")


def test_values_that_are_not_finite_become_a_failed_row_of_nan(tmp_path: Path) -> None:
    found = run(stage_of(tmp_path, HOLLOW=[7]), tmp_path / "store")
    samples = found.samples()
    assert samples["status"][7] == "the network's features are not finite"
    assert samples["status"].eq("ok").sum() == 39
    assert np.isnan(found.read("logits")[7]).all()


def test_a_network_that_gives_nothing_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"not finite for any image of rows 0 to 19: is it tr"):
        run(stage_of(tmp_path, HOLLOW=list(range(40))), tmp_path / "store")


def test_memory_is_measured_on_an_image_that_a_network_accepts(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, "Colourful", batch_rows=0)
    assert fitted(stage, LocalExecutor(), 2).batch_rows > 0


def test_a_batch_that_does_not_fit_into_memory_is_halved_permanently(tmp_path: Path) -> None:
    found = run(stage_of(tmp_path, "Greedy", batch_rows=16), tmp_path / "store")
    expected = run(stage_of(tmp_path), tmp_path / "clean").read("logits")
    np.testing.assert_allclose(found.read("logits"), expected, atol=1e-5)
    assert [receipt.facts["batch_rows"] for receipt in found.shard_set.receipts()] == [4, 4]
    assert (tmp_path / "mine.py.log").read_text().split() == ["16", "8"]


def test_batches_get_as_small_as_the_memory_asks_for(tmp_path: Path) -> None:
    stage = replace(stage_of(tmp_path), batch_rows=65_536)
    sizes = [
        fitted(stage, LocalExecutor(1, memory_bytes=memory * 2**20), 2).batch_rows
        for memory in (700, 800, 4096)
    ]
    assert sizes[0] < sizes[1] < sizes[2] == 65_536


def test_too_little_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "store"))
    executor = LocalExecutor(1, memory_bytes=100 * 2**20)
    with pytest.raises(ResourceError, match=r"32x32 pixels: a worker needs 0.59 GiB.*--shard-rows"):
        extract(store, stage_of(tmp_path), executor)
    assert not (tmp_path / "store").exists()


def test_dense_gradients_that_do_not_fit_are_refused_with_a_remedy(tmp_path: Path) -> None:
    executor = LocalExecutor(1, memory_bytes=100 * 2**20)
    stage = stage_of(tmp_path)
    wide = replace(stage.card, network=f"{tmp_path}/mine.py:Wide")
    stage = replace(stage, card=wide, layer=NamedLayer("3", "ce"))
    with pytest.raises(ResourceError, match=r"--workers\); or project the gradients \(--project"):
        fitted(stage, executor, 2)
    projected = replace(stage, layer=NamedLayer("3", "ce", size=3))
    with pytest.raises(ResourceError, match=r"--workers\)$"):
        fitted(projected, executor, 2)


def test_a_worker_keeps_within_the_memory_that_it_was_given(tmp_path: Path) -> None:
    """3,000 images of 224 x 224 are 450 MB, more than is left beside Python and torch."""
    stage_of(tmp_path)
    network = build_network(f"{tmp_path}/mine.py:Wide", 10)
    (tmp_path / "wide.safetensors").write_bytes(save_weights(network))
    np.save(tmp_path / "black.npy", np.zeros((3_000, 32, 32, 3), np.uint8))
    command = f"extract --dataset black.npy --network {tmp_path}/mine.py:Wide --model wide"
    command += f" --weights wide.safetensors --image-size 224 --store {tmp_path}/store"
    command += " --executor local --gpus 0 --memory 800M"
    # Not ru_maxrss: a child inherits the peak of its parent, a large pytest, at the fork.
    program = (
        "import atexit, pathlib, sys\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: status.read_text().partition('VmHWM:')[2].split()[0]\n"
        "atexit.register(lambda: print(peak()))\n"
        "from cli.app import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended.stdout.splitlines()[-1]) * 1024 < 800 * 2**20
