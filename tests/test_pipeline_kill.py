"""The promise: a run killed at any moment loses no shard that it had finished, and no row is wrong.

Real commands in processes of their own, killed with everything that they started.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.errors import ResourceError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.ray_executor import RayExecutor
from stages.data.registry import SourceSpec
from stages.reflection.extract import Extract, extract
from stages.sensing.models import ModelRequest, choose
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.lease import holder_of

N_ROWS = 240
SHARD_ROWS = 8
N_SHARDS = N_ROWS // SHARD_ROWS
BATCH = 4

MARK = "INTRO_PIPE_TEST_MARK"

NETWORK = """
from torch import nn

def tiny(n_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, n_classes))
"""


@dataclass
class Place:
    """A data set, a network and a store in a folder; every command that runs there bears a mark."""

    folder: Path
    store: str = "store"
    mark: str = field(default_factory=lambda: f"{os.getpid()}-{time.time_ns()}")

    def start(self, *options: str, batch: int = BATCH) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, "-m", "cli.app", "extract", "--dataset", "images.npz"),
            *("--network", "net.py:tiny", "--weights", "tiny.safetensors", "--image-size", "8"),
            *("--store", self.store, "--shard-rows", str(SHARD_ROWS), "--batch-size", str(batch)),
            *("--json", *options),
        ]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *options: str, batch: int = BATCH) -> dict[str, float]:
        output, errors = (process := self.start(*options, batch=batch)).communicate(timeout=120)
        assert process.returncode == 0, errors
        return dict(json.loads(output))  # nothing else stands on stdout

    def wait_for(self, n_receipts: int, process: "subprocess.Popen[str]") -> None:
        deadline = time.monotonic() + 60
        while len(self.receipts()) < n_receipts:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.001)

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """Kill the command's process group; what it started in others must end by itself."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert self.is_quiet()

    def alive(self) -> list[int]:
        """Processes that bear our mark."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it ended meanwhile
        return found

    def is_quiet(self) -> bool:
        """Whether all that was started ends by itself within some seconds."""
        deadline = time.monotonic() + 20
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()

    def receipts(self) -> dict[str, bytes]:
        found = (self.folder / self.store).glob("features/*/receipts/*.json")
        return {path.name: path.read_bytes() for path in found if path.name[0] != "."}

    def features(self) -> FeatureSet:
        return FeatureStore(str(self.folder / self.store)).resolve("images@tiny")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_ROWS, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(N_ROWS) % 10)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    safetensors.torch.save_file(network.state_dict(), folder / "tiny.safetensors")
    (folder / "net.py").write_text(NETWORK)
    return folder


def stage_of(store: FeatureStore, inputs: Path) -> Extract:
    """What the command of ``Place.start`` runs."""
    request = ModelRequest(
        network=f"{inputs / 'net.py'}:tiny",
        weights=str(inputs / "tiny.safetensors"),
        image_size=8,
    )
    images = str(inputs / "images.npz")
    chosen = choose(store, request, SourceSpec(images, "test", str(inputs)))
    chosen.take_in()
    return Extract(
        chosen.source, chosen.card, chosen.weights, shard_rows=SHARD_ROWS, batch_rows=BATCH
    )


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path) -> FeatureSet:
    store = FeatureStore(str(inputs / "reference"))
    return extract(
        store,
        stage_of(store, inputs),
        LocalExecutor(n_threads=1),
        Journal.of(store.location, ["extract"]),
    )[0]


@pytest.fixture
def place(inputs: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(inputs, request.node.name)  # a store for each test
    yield place
    for pid in place.alive():
        os.kill(pid, signal.SIGKILL)


def assert_same_rows(found: FeatureSet, expected: FeatureSet) -> None:
    """Equal to 1e-5, and bit by bit where the batch size was the same."""
    assert found.fingerprint == expected.fingerprint
    assert len(found.shard_set.done()) == N_SHARDS
    for shard in found.shard_set.shards:
        is_same_batch = found.shard_set.receipt(shard)["batch_rows"] == BATCH
        for name in ("features", "logits"):
            rows, others = found.read_chunk(name, shard), expected.read_chunk(name, shard)
            np.testing.assert_allclose(rows, others, rtol=1e-5, atol=1e-5)
            assert not is_same_batch or rows.tobytes() == others.tobytes()
        sample, other = found.read_samples(shard), expected.read_samples(shard)
        assert sample.drop(["confidence"]).equals(other.drop(["confidence"]))


def test_a_run_that_is_killed_again_and_again_loses_nothing(
    place: Place, uninterrupted: FeatureSet
) -> None:
    """Three kills at seeded moments, then another batch size for what is left."""
    finished: dict[str, bytes] = {}
    for n_receipts in sorted(random.Random(0).sample(range(2, N_SHARDS - 4), 3)):
        process = place.start("--executor", "local")
        place.wait_for(n_receipts, process)
        place.kill(process)
        receipts = place.receipts()
        assert len(receipts) >= n_receipts
        assert finished.items() <= receipts.items()  # byte for byte
        finished = receipts
    report = place.finish("--executor", "local", batch=3)
    assert report["n_computed"] == N_SHARDS - len(finished) > 0
    assert finished.items() <= place.receipts().items()
    assert_same_rows(place.features(), uninterrupted)


@pytest.mark.ray
def test_a_killed_ray_run_is_finished_by_another_number_of_workers(
    place: Place, uninterrupted: FeatureSet
) -> None:
    process = place.start("--workers", "2")
    place.wait_for(3, process)
    place.kill(process)
    finished = place.receipts()
    assert place.finish("--workers", "1", batch=3)["n_computed"] == N_SHARDS - len(finished) > 0
    assert finished.items() <= place.receipts().items()
    assert_same_rows(place.features(), uninterrupted)
    assert place.is_quiet()


@pytest.mark.ray
def test_an_interrupt_gives_the_lease_back_and_leaves_no_process(place: Place) -> None:
    """As Ctrl-C does: a signal to every process of the terminal's foreground group."""
    process = place.start("--workers", "2")
    place.wait_for(3, process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert errors.endswith("stopped: what was finished is kept; the same command goes on\n")
    assert place.is_quiet()
    assert holder_of(place.features().shard_set.storage) is None


def test_more_gpus_than_there_are_are_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store = FeatureStore(str(tmp_path / "store"))
    stage = stage_of(store, inputs)
    with pytest.raises(ResourceError, match="64 GPUs were asked for, this machine has "):
        extract(store, stage, RayExecutor(n_gpus=64), Journal.of(store.location, ["extract"]))
    assert not [path for path in tmp_path.glob("store/*") if path.name in ("features", "journal")]
