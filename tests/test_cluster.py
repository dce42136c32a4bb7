"""Several nodes: one dies, another joins, and every GPU has one worker."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from nodes import Nodes, nodes
from torch import nn

from pipeline.activity import costs_of
from pipeline.journal import runs
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.verify import verify_feature_set

pytestmark = [pytest.mark.ray, pytest.mark.soak]

N_SHARDS, SHARD_ROWS = 40, 8

# It takes a while over each batch, and leaves a note of the node that it is on.
NETWORK = """
import os, time
from pathlib import Path
import torch
from torch import nn

@torch.fx.wrap
def late(x):
    time.sleep(float(os.environ.get("INTRO_PIPE_TEST_NAP_S", 0.6)))
    return x

class Slow(nn.Module):
    def forward(self, x):
        return late(x)

def tiny(n_classes=10):
    if "NODE" in os.environ:
        Path(__file__).with_name(f"at-{os.environ['NODE']}-{os.getpid()}").touch()
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), Slow(), nn.Linear(144, n_classes)
    return nn.Sequential(*layers)
"""


@dataclass(frozen=True)
class Place:
    """Images, a network and a store in a folder."""

    folder: Path
    store: str

    def command(self, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "cli.app", "extract", "--dataset", "images.npz"),
            *("--network", "net.py:tiny", "--weights", "tiny.safetensors", "--image-size", "8"),
            *("--store", self.store, "--shard-rows", str(SHARD_ROWS), "--json", *options),
        ]

    def start(self, environment: dict[str, str], *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*options),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, n_receipts: int, process: "subprocess.Popen[str]") -> None:
        receipts = self.folder / self.store / "features"
        while len(list(receipts.glob("*/receipts/[0-9]*.json"))) < n_receipts:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    def features(self) -> FeatureSet:
        return FeatureStore(str(self.folder / self.store)).resolve("images@tiny")

    def attempts(self) -> list[dict[str, Any]]:
        """What each attempt at a shard of the newest run cost, and where."""
        return costs_of(next(runs(str(self.folder / self.store))).events)

    def node_of(self, where: str) -> str:
        """The node of a process, ``host:pid``."""
        (note,) = self.folder.glob(f"at-*-{where.rpartition(':')[2]}")
        return note.name.split("-")[1]


def write_inputs(folder: Path) -> None:
    n_rows = N_SHARDS * SHARD_ROWS
    images = np.random.default_rng(0).integers(0, 256, (n_rows, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(n_rows) % 10)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Identity(), nn.Linear(144, 10)
    )
    safetensors.torch.save_file(network.state_dict(), folder / "tiny.safetensors")
    (folder / "net.py").write_text(NETWORK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> FeatureSet:
    place = Place(folder, "undisturbed")
    quick = {**os.environ, "OMP_NUM_THREADS": "1", "INTRO_PIPE_TEST_NAP_S": "0"}
    process = place.start(quick, "--executor", "local")
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return place.features()


def files_of(found: FeatureSet) -> dict[str, bytes]:
    """The files that say nothing of when and by whom they were made."""
    storage = found.shard_set.storage
    keys = [key for key in storage.keys("") if key.split("/")[0] not in ("receipts", "lease")]
    return {key: storage.read(key) for key in keys}


@pytest.fixture(scope="module")
def disturbed(folder: Path, cluster: Nodes) -> Place:
    """A run without a word on how many workers; node a dies under it, and then node c joins."""
    place = Place(folder, "disturbed")
    cluster.add("a", n_cpus=2)
    cluster.add("b", n_cpus=2)
    process = place.start(cluster.environment, "--address", cluster.address)
    place.wait_for(6, process)
    cluster.kill("a")
    cluster.add("c", n_cpus=4)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert json.loads(output)["n_computed"] == N_SHARDS
    return place


def test_a_run_survives_the_death_of_a_node_with_the_same_bytes(
    disturbed: Place, undisturbed: FeatureSet
) -> None:
    assert files_of(disturbed.features()) == files_of(undisturbed)
    assert list(verify_feature_set(disturbed.features())) == []


def test_only_the_shards_that_the_lost_node_held_are_computed_again(disturbed: Place) -> None:
    attempts = disturbed.attempts()
    lost = [each for each in attempts if each["error"]]
    assert 1 <= len(lost) <= 2  # it had two CPUs
    assert {disturbed.node_of(each["where"]) for each in lost} == {"a"}
    expected = dict.fromkeys(range(N_SHARDS), 1) | {each["shard"]: 2 for each in lost}
    assert Counter(each["shard"] for each in attempts) == expected


def test_a_node_that_joins_takes_over_workers_and_gets_new_ones(disturbed: Place) -> None:
    """One of the six remaining CPUs stays free: two workers on b, three on c."""
    wheres = {each["where"] for each in disturbed.attempts() if not each["error"]}
    n_workers = Counter(disturbed.node_of(where) for where in wheres)
    assert n_workers["c"] >= 3
    assert n_workers["b"] + n_workers["c"] == 5


def test_status_shows_the_node_of_each_attempt(disturbed: Place) -> None:
    command = ["status", "--shards", "--json", "--store", str(disturbed.folder / disturbed.store)]
    told = subprocess.run(
        [sys.executable, "-m", "cli.app", *command], capture_output=True, text=True, check=True
    )
    nodes_told = {disturbed.node_of(each["where"]) for each in json.loads(told.stdout)}
    assert nodes_told == {"a", "b", "c"}


def start_together(
    folder: Path, cluster: Nodes, executor: str, n_workers: int
) -> "subprocess.Popen[str]":
    code = (
        "from nodes import RayExecutor, run_together;"
        f"run_together({str(folder)!r}, RayExecutor({executor}), {n_workers})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )


def notes_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Node and GPUs of each process of a run."""
    notes = [(path.name.split("-"), path.read_text()) for path in folder.glob("at-*")]
    return {pid: (node, gpus) for (_, node, pid), gpus in notes}


def test_workers_beyond_the_resources_wait_for_a_node(
    cluster: Nodes, disturbed: Place, tmp_path: Path
) -> None:
    cluster.kill("c")
    process = start_together(tmp_path, cluster, "n_workers=4", 4)
    while len(notes_of(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    cluster.add("d", n_cpus=2)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert Counter(node for node, _ in notes_of(tmp_path).values()) == {"b": 2, "d": 2}


def test_eight_gpus_on_two_nodes_have_one_worker_each(cluster: Nodes, tmp_path: Path) -> None:
    """The journal records the GPU of each worker. Four GPUs exist at first, and four join."""
    cluster.add("e", n_gpus=4)
    process = start_together(tmp_path, cluster, "n_gpus=8", 8)
    while len(notes_of(tmp_path)) < 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    cluster.add("f", n_gpus=4)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    notes = notes_of(tmp_path)
    assert sorted(notes.values()) == [(node, str(gpu)) for node in "ef" for gpu in range(4)]
    told = dict(
        each["where"].rpartition(":")[2].split(" gpu ")
        for each in costs_of(next(runs(str(tmp_path))).events)
    )
    assert told == {pid: gpu for pid, (_, gpu) in notes.items()}


def test_by_default_every_gpu_of_the_cluster_gets_a_worker(folder: Path, cluster: Nodes) -> None:
    cluster.add("g", n_gpus=3)
    process = Place(folder, "new").start(
        cluster.environment, "--address", cluster.address, "--dry-run"
    )
    output, errors = process.communicate(timeout=60)
    assert json.loads(output)["executor"].endswith(f"GPU workers on {cluster.address}"), errors
    assert json.loads(output)["executor"].startswith("11 ")
