"""Real commands on a few digits, killed at random moments and rerun; see ``campaign``."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from small_data import train_small, write_npz_set
from tiny_recipe import TINY

from pipeline.journal import runs
from store.catalog import FeatureStore

HERE = ("--store", "store", "--json")
LOCAL = ("--executor", "local", "--data-root", "data")
EXTRACT = ("extract", "--dataset", "tiny", "--split", "train", "--model", "cnn2")
COMMANDS = {
    "train-head": (
        *("train-head", "--features", "tiny-train@cnn2", "--layers", "20", "--seeds", "0,1"),
        *("--epochs", "150", "--device", "cpu", *HERE),
    ),
    "corrupt": (
        *("corrupt", "--dataset", "tiny", "--out", "data/hard", *LOCAL, *HERE),
        *("--corruptions", "contrast,fog,gaussian_noise,elastic_transform"),
    ),
    "recipe": ("run", "tiny.yaml", "--device", "cpu", *LOCAL, *HERE),
}
COMPARED = ("store/models", "store/features", "store/heads", "store/results", "data")
UNCOMPARED = {"receipts", "lease", "quarantine", "checkpoints", ".staging"}
UNITS = ("shard", "epoch")
"""Events of the journal, one for each finished unit."""

MAX_TRIES = 4


@dataclass(frozen=True)
class Undisturbed:
    """The result of an undisturbed command: files, number of units, and its duration."""

    files: dict[str, object]
    n_units: int
    seconds: float


@dataclass
class Stages:
    """A folder with a data set that each round copies; with features, to train a head."""

    folder: Path
    undisturbed: dict[str, Undisturbed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self.folder / "images"
        write_npz_set(self.images / "data" / "tiny", 300, 60)
        (self.images / "tiny.yaml").write_text(TINY)

    @cached_property
    def features(self) -> Path:
        """A folder with features, made on first use."""
        place = Path(shutil.copytree(self.images, self.folder / "features"))
        train_small(FeatureStore(str(place / "store")).prepare(), place / "data" / "tiny")
        made = _start(place, (*EXTRACT, "--device", "cpu", *LOCAL, *HERE))
        error = made.communicate()[1]
        assert made.returncode == 0, error
        return place

    def reference(self, stage: str) -> Undisturbed:
        """The undisturbed result of a command, computed on first use."""
        if stage not in self.undisturbed:
            place = self.copy(stage, self.folder / f"undisturbed {stage}")
            started = time.monotonic()
            finish(place, stage)
            seconds = time.monotonic() - started
            self.undisturbed[stage] = Undisturbed(outcome_of(place), n_units(place), seconds)
        return self.undisturbed[stage]

    def copy(self, stage: str, place: Path) -> Path:
        """Make a folder for a round."""
        template = self.features if stage == "train-head" else self.images
        return Path(shutil.copytree(template, place))


def kill(place: Path, stage: str, rng: random.Random, seconds: float) -> None:
    """Start the command and kill it with its child processes, one to three times."""
    for _ in range(rng.randint(1, 3)):
        process = _start(place, COMMANDS[stage])
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=rng.uniform(0.3, 1.0) * seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(place: Path, stage: str) -> None:
    """Run the command until it succeeds, and verify every byte."""
    for command in (COMMANDS[stage], ("verify", *HERE)):
        for _ in range(MAX_TRIES):
            process = _start(place, command)
            error = process.communicate()[1]
            if process.returncode == 0:
                break
        else:
            raise AssertionError(f"{command[0]} does not succeed: {error[-500:]}")


def outcome_of(place: Path) -> dict[str, object]:
    """What must be the same in every run: whole files, and the checksums in each card."""
    found: dict[str, object] = {}
    for path in (path for top in COMPARED for path in sorted((place / top).rglob("*"))):
        key = path.relative_to(place).as_posix()
        if path.is_dir() or UNCOMPARED & set(path.relative_to(place).parts):
            continue
        content = path.read_bytes()
        is_card = path.suffix == ".json" and path.name not in ("plan.json", "zarr.json")
        found[key] = json.loads(content).get("files") if is_card else content
    return found


def n_units(place: Path) -> int:
    """Number of shards and epochs that all runs have finished."""
    events = (event for run in runs(str(place / "store")) for event in run.events)
    return sum(event["event"] in UNITS for event in events)


def _start(place: Path, command: tuple[str, ...]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cli.app", *command],
        cwd=place,
        # One thread always adds in the same order: the results are equal to the last bit.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
