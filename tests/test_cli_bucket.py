"""The command line with a store in a bucket: workers on Ray, a kill, and no leaked secrets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bucket import SECRET, Gate
from small_data import train_small, write_npz_set

from store.catalog import FeatureStore
from store.objects import ObjectStorage


@pytest.fixture
def data(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set called pixels, and a model of it in the store of the bucket."""
    folder = write_npz_set(tmp_path / "data" / "pixels", 100, 40)
    train_small(FeatureStore(place).prepare(), folder)
    monkeypatch.setenv("INTRO_PIPE_STORE", place)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(folder.parent))
    return folder


def begin(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli.app", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*words: str) -> str:
    with begin(*words) as process:
        told, _ = process.communicate()
    assert process.returncode == 0, told
    assert SECRET not in told
    return told


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("data")
def test_workers_on_ray_finish_in_a_bucket_what_a_killed_driver_began(
    gate: Gate, place: str
) -> None:
    gate.share, gate.faults = 0.02, ("throttle", "lose the answer", "cut the answer")
    extract = ["extract", "--dataset", "pixels", "--shard-rows", "4"]
    with begin(*extract, "--executor", "local") as driver:
        made = None
        while made is None or not made.shard_set.done():
            assert driver.poll() is None
            time.sleep(0.05)
            made = next(FeatureStore(place).feature_sets(), None)
        driver.send_signal(signal.SIGKILL)
    n_done = len(made.shard_set.done())
    assert 1 <= n_done < 10
    told = run(*extract, "--workers", "2", "--json")
    assert json.loads(told[told.index("{") :])["n_computed"] == 10 - n_done
    assert "0 problems" in run("verify")
    assert gate.met


@pytest.mark.usefixtures("data")
def test_nothing_of_a_run_repeats_the_credentials(place: str) -> None:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    run("extract", "--dataset", "pixels", "--executor", "local")
    run("status", "--shards")
    storage = ObjectStorage(place)
    keys = list(storage.keys())
    assert any(key.startswith("journal/") for key in keys)
    assert not [key for key in keys if SECRET.encode() in storage.read(key)]
