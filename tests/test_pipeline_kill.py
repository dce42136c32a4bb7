"""The guarantee: a run killed at any moment loses no finished shard, and no row is wrong.

Real commands in processes of their own, killed with everything that they started.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from made import extract, make_in
from torch import nn

from pipeline.errors import ResourceError
from pipeline.journal import runs
from pipeline.ray_executor import RayExecutor
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction
from stages.sensing.import_model import ImportModel
from stages.sensing.models import model_card, weights_path
from stages.sensing.trust import trust
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.lease import holder_of

N_ROWS = 240
SHARD_ROWS = 8
N_SHARDS = N_ROWS // SHARD_ROWS
BATCH = 4
DEADLINE_S = 120.0
"""For what takes seconds on a quiet machine."""
QUIET_AFTER_S = 40.0

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

    def start(
        self, *options: str, batch: int = BATCH, ignored: int | None = None
    ) -> "subprocess.Popen[str]":
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
            preexec_fn=lambda: _set_signals(ignored),
        )

    def finish(self, *options: str, batch: int = BATCH) -> dict[str, float]:
        output, errors = (process := self.start(*options, batch=batch)).communicate(
            timeout=DEADLINE_S
        )
        assert process.returncode == 0, errors
        return dict(json.loads(output))  # nothing else is on stdout

    def wait_for(self, n_receipts: int, process: "subprocess.Popen[str]") -> None:
        deadline = time.monotonic() + DEADLINE_S
        while len(self.receipts()) < n_receipts:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.001)

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """Kill the command's process group; processes in other groups must end on their own."""
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
        """Whether all processes that were started end on their own; Ray's would in a minute."""
        deadline = time.monotonic() + QUIET_AFTER_S
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()

    def receipts(self) -> dict[str, bytes]:
        found = (self.folder / self.store).glob("features/*/receipts/*.json")
        return {path.name: path.read_bytes() for path in found if path.name[0] != "."}

    def features(self) -> FeatureSet:
        return FeatureStore(str(self.folder / self.store)).resolve("images@tiny")


def _set_signals(ignored: int | None) -> None:
    """Whatever signals the shell ignores from which the tests were started."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN if signum == ignored else signal.SIG_DFL)


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


def stage_of(store: FeatureStore, inputs: Path) -> Extraction:
    """What the command of ``Place.start`` runs."""
    images = str(inputs / "images.npz")
    trust(f"{inputs / 'net.py'}:tiny")
    stage = ImportModel(
        network=f"{inputs / 'net.py'}:tiny",
        weights=str(inputs / "tiny.safetensors"),
        dataset=images,
        image_size=8,
    )
    card = model_card(make_in(store, stage).output)
    return Extraction(
        SourceSpec(images, "test", str(inputs), image_size=8),
        card,
        weights_path(store, card.name),
        shard_rows=SHARD_ROWS,
        batch_rows=BATCH,
    )


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path) -> FeatureSet:
    store = FeatureStore(str(inputs / "reference"))
    return extract(store, stage_of(store, inputs))


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
        is_same_batch = found.shard_set.receipt(shard).facts["batch_rows"] == BATCH
        for name in ("features", "logits"):
            rows, others = found.read_chunk(name, shard), expected.read_chunk(name, shard)
            np.testing.assert_allclose(rows, others, rtol=1e-5, atol=1e-5)
            assert not is_same_batch or rows.tobytes() == others.tobytes()
        sample, other = found.read_samples(shard), expected.read_samples(shard)
        assert sample.drop(["confidence"]).equals(other.drop(["confidence"]))


def test_a_run_that_is_killed_again_and_again_loses_nothing(
    place: Place, uninterrupted: FeatureSet
) -> None:
    """Two kills at seeded moments, then another batch size for what is left."""
    finished: dict[str, bytes] = {}
    for n_receipts in sorted(random.Random(0).sample(range(2, N_SHARDS - 4), 2)):
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
@pytest.mark.parametrize("is_driver_alone", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_killed_ray_run_leaves_nothing_and_another_number_of_workers_finishes_it(
    is_driver_alone: bool,
    place: Place,
    uninterrupted: FeatureSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL of the driver alone, as from the kernel when memory runs out, or of its group."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, as sockets need
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    process = place.start("--workers", "2")
    place.wait_for(3, process)
    assert list(folder.iterdir())
    (os.kill if is_driver_alone else os.killpg)(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + QUIET_AFTER_S
    while (place.alive() or list(folder.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not place.alive()
    folder.rmdir()
    monkeypatch.delenv("RAY_TMPDIR")
    finished = place.receipts()
    assert place.finish("--workers", "1", batch=3)["n_computed"] == N_SHARDS - len(finished) > 0
    assert finished.items() <= place.receipts().items()
    assert_same_rows(place.features(), uninterrupted)
    assert place.is_quiet()


def assert_stopped(place: Place, process: "subprocess.Popen[str]", signum: int) -> None:
    """One line, the shell's exit code, "stopped" in the journal, and no process left."""
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output) == (128 + signum, ""), errors
    assert "Traceback" not in errors
    assert "***" not in errors  # as the trace begins that Ray's handler of SIGTERM prints
    line = "finished work is kept; run the same command again to continue"
    assert errors.endswith(f"stopped by {signal.Signals(signum).name}: {line}\n")
    assert place.is_quiet()
    assert holder_of(place.features().shard_set.storage) is None
    assert next(runs(str(place.folder / place.store))).outcome == "stopped"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_run_and_releases_the_lease(place: Place, signum: int) -> None:
    process = place.start("--executor", "local")
    place.wait_for(2, process)
    process.send_signal(signum)
    process.send_signal(signal.SIGTERM)  # a second one does not break the shutdown
    assert_stopped(place, process, signum)


def test_a_run_under_nohup_outlives_its_terminal(place: Place) -> None:
    process = place.start("--executor", "local", ignored=signal.SIGHUP)
    place.wait_for(2, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert len(place.receipts()) == N_SHARDS


@pytest.mark.ray
@pytest.mark.parametrize(
    "signum", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM]
)
def test_a_signal_to_the_process_group_of_a_ray_run_leaves_no_process(
    place: Place, signum: int
) -> None:
    """The signal goes to Ray's processes too, as from terminals, ``timeout`` and batch systems."""
    process = place.start("--workers", "2")
    place.wait_for(3, process)
    os.killpg(process.pid, signum)
    assert_stopped(place, process, signum)


@pytest.mark.ray
def test_sigterm_to_the_driver_alone_ends_a_ray_run_in_order(place: Place) -> None:
    process = place.start("--workers", "2")
    place.wait_for(3, process)
    process.send_signal(signal.SIGTERM)
    assert_stopped(place, process, signal.SIGTERM)


def test_more_gpus_than_there_are_are_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store = FeatureStore(str(tmp_path / "store"))
    stage = stage_of(store, inputs)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResourceError, match="requested 64 GPUs, this machine has "):
        extract(store, stage, RayExecutor(n_gpus=64))
    assert sorted(tmp_path.rglob("*")) == before
