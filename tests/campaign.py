"""Damage real processes on a real disk in every known way, round after round, by seed.

Each round makes a set of squares with a command, causes a fault at a random moment, reruns the
command until it succeeds, and compares the result with an undisturbed set: rows, order, bytes,
checksums. Attempts at shards are counted to detect repeated work. Some rounds do the same with
commands of intro-pipe; see ``campaign_stages``.

    python tests/campaign.py --rounds 300
    python tests/campaign.py --first 17 --rounds 1       # repeat round 17
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from campaign_stages import COMMANDS, Stages, finish, kill, n_units, outcome_of
from squares import plan_of

from store.catalog import FeatureStore
from store.errors import StoreError
from store.featureset import FeatureSet
from store.verify import repair, verify_feature_set

N_ROWS, SHARD_ROWS, PAUSE_S = 200, 10, 0.02
N_SHARDS = N_ROWS // SHARD_ROWS
N_WORKERS = 2
MARK = "INTRO_PIPE_CAMPAIGN"
UNCOMPARED = ("receipts", "lease", "quarantine")
"""Folders that record when and by whom something was done, or keep damaged files."""

MAX_TRIES = 4
DISK_BYTES = 96 * 1024
"""Too small for the set, so that the disk becomes full during the run."""


@dataclass
class Round:
    """A store in its own folder, and the processes that were started for it."""

    seed: int
    folder: Path
    n_workers: int = 0
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.mark = f"{os.getpid()}-{self.seed}-{time.time_ns()}"
        self.attempts = self.folder / "attempts"
        self.attempts.mkdir()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self, pause_s: float = PAUSE_S, **environment: str) -> subprocess.Popen[str]:
        """Start the command in its own process group."""
        if self.n_workers:  # the work must last longer than detecting the loss of a node
            pause_s = 20 * PAUSE_S
        words = (self.store, self.attempts, N_ROWS, SHARD_ROWS, pause_s, self.n_workers)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("squares.py")), *map(str, words)],
            env={**os.environ, MARK: self.mark, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Background jobs of a shell ignore Ctrl-C, and their children would, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def finish(self) -> str:
        """Run the command until it succeeds; returns the last error if it never does."""
        error = ""
        for _ in range(MAX_TRIES):
            process = self.start()
            error = process.communicate()[1]
            if process.returncode == 0:
                return ""
        return error or "the command failed without an error message"

    def wait_for(self, process: subprocess.Popen[str], n_receipts: int) -> None:
        """Wait until ``n_receipts`` shards are done, or the process has ended."""
        while process.poll() is None and len(self.receipts()) < n_receipts:
            time.sleep(0.002)

    def some_receipts(self) -> int:
        return self.rng.randint(0, N_SHARDS - 1)

    def receipts(self) -> list[Path]:
        return list(self.store.glob("features/*/receipts/*.json"))

    def n_attempts(self) -> int:
        return len(list(self.attempts.glob("shard-*")))

    def found(self) -> FeatureSet:
        return FeatureStore(str(self.store)).create(plan_of(N_ROWS, SHARD_ROWS))

    def pids(self, words: str = "") -> list[int]:
        """Running processes of this round whose command line contains ``words``."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_ours = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes()
                if is_ours and words.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def end(self) -> None:
        """Kill the remaining processes."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def kill_driver(case: Round) -> None:
    """Kill the driver and its workers at once."""
    process = case.start()
    case.wait_for(process, case.some_receipts())
    time.sleep(case.rng.uniform(0, PAUSE_S))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_driver_early(case: Round) -> None:
    """Kill the driver in its first steps, before any shard is done."""
    process = case.start()
    time.sleep(case.rng.uniform(0.3, 1.5))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def interrupt(case: Round) -> None:
    """Interrupt the driver, as Ctrl-C does."""
    process = case.start()
    case.wait_for(process, case.some_receipts())
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.communicate()


def two_drivers(case: Round) -> None:
    """Start a second driver while the first is running; it must be refused."""
    first = case.start(pause_s=20 * PAUSE_S)
    case.wait_for(first, 1)
    _require_refusal(case, first)
    first.communicate()


def suspend(case: Round) -> None:
    """Suspend the driver, start another, which must be refused, and resume the first."""
    first = case.start()
    case.wait_for(first, case.rng.randint(1, N_SHARDS // 2))
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGSTOP)
    _require_refusal(case, first)
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGCONT)
    first.communicate()


def _require_refusal(case: Round, first: subprocess.Popen[str]) -> None:
    """Check that another driver is refused with the name of the first, if work is left."""
    second = case.start()
    error = second.communicate()[1]
    is_refused = second.returncode != 0 and _named(first) in error
    if not is_refused and len(case.receipts()) < N_SHARDS:
        raise AssertionError(f"a second driver was not refused: {second.returncode} {error[-500:]}")


def _named(first: subprocess.Popen[str]) -> str:
    """Text that the refusal must contain."""
    return f"(pid {first.pid} on "


def clock_jumps(case: Round) -> None:
    """Shift the clock of a driver that others only know by its heartbeat; they must wait."""
    first = case.start(pause_s=2.5, SQUARES_CLOCK_JUMPS="1")
    case.wait_for(first, 5)  # by then it has sent one heartbeat, an hour ahead
    _require_refusal(case, first)
    first.communicate()


def failing_disk(case: Round) -> None:
    """Let calls of the file system fail with EIO, ENOSPC and EROFS for a while."""
    case.start(SQUARES_DISK_FAILS=str(case.seed)).communicate()


def orphaned_lease(case: Round) -> None:
    """Leave a lease of a lost driver on another machine: it is watched, then replaced."""
    lease = case.found().shard_set.storage
    facts = {
        **{"host": "lost", "kernel": "lost", "pid": 1, "process_started": "1", "token": "x"},
        **{"purpose": "extract", "heartbeat": 0.0, "is_released": False},
    }
    lease.write("lease/00000005.json", json.dumps(facts).encode())


def full_disk(case: Round) -> None:
    """Let the disk become full, then free space."""
    with _tiny_disk(case.store):
        process = case.start()
        process.communicate()
        kept = case.folder / "kept"
        shutil.copytree(case.store, kept)
    shutil.rmtree(case.store)
    kept.rename(case.store)


def read_only_disk(case: Round) -> None:
    """Make the file system read-only, as happens after an error."""
    with _tiny_disk(case.store, n_bytes=16 * DISK_BYTES):
        process = case.start()
        case.wait_for(process, case.rng.randint(1, N_SHARDS // 2))
        while process.poll() is None and _remount(case.store, "ro"):
            time.sleep(0.001)  # a file is being written: not now
        process.communicate()
        kept = case.folder / "kept"
        shutil.copytree(case.store, kept)
    shutil.rmtree(case.store)
    kept.rename(case.store)


def damage(change: Callable[[random.Random, bytes], bytes | None]) -> Callable[[Round], None]:
    """Damage any file of a finished set; verify must find it, repair discard what is damaged."""

    def damage_file(case: Round) -> None:
        case.finish()
        found = case.found()
        storage = found.shard_set.storage
        keys = [key for key in storage.keys("") if not key.startswith("lease/")]
        key = case.rng.choice(keys)
        place = Path(storage.location, key)
        if (data := change(case.rng, place.read_bytes())) is None:
            place.unlink()
        else:
            place.write_bytes(data)
        problems = list(verify_feature_set(found))
        is_missing_shard = key.startswith("receipts/") and not place.exists()
        if all(problem.is_harmless for problem in problems) and not is_missing_shard:
            raise AssertionError(f"verify has not found the damage to {key}")
        repair(found.shard_set, problems)

    return damage_file


def _flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def kill_worker(case: Round) -> None:
    """Kill one actor; the run must continue."""
    process = case.start()
    case.wait_for(process, max(1, case.some_receipts()))
    pids = [int(path.name.split("-")[1]) for path in case.attempts.glob("setup-*")]
    if pids:
        with suppress(ProcessLookupError):
            os.kill(case.rng.choice(pids), signal.SIGKILL)
    error = process.communicate()[1]
    if process.returncode:
        raise AssertionError(f"a run did not survive the death of a worker: {error[-500:]}")


def kill_raylet(case: Round) -> None:
    """Kill the node with everything on it; the driver notices and ends."""
    process = case.start()
    case.wait_for(process, max(1, case.some_receipts()))
    for pid in case.pids("raylet/raylet"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


LOCAL_FAULTS: dict[str, Callable[[Round], None]] = {
    "kill driver": kill_driver,
    "kill driver early": kill_driver_early,
    "interrupt": interrupt,
    "two drivers": two_drivers,
    "suspend": suspend,
    "orphaned lease": orphaned_lease,
    "clock jumps": clock_jumps,
    "failing disk": failing_disk,
    "full disk": full_disk,
    "read-only disk": read_only_disk,
    "flip a bit": damage(_flipped),
    "truncate a file": damage(_truncated),
    "remove a file": damage(lambda rng, data: None),
}
RAY_FAULTS: dict[str, Callable[[Round], None]] = {
    "kill worker (Ray)": kill_worker,
    "kill driver (Ray)": kill_driver,
    "kill raylet (Ray)": kill_raylet,
}
STAGES = {f"kill {stage}": stage for stage in COMMANDS}
"""Faults during a command of intro-pipe."""


@dataclass
class Verdict:
    """Result of a round."""

    fault: str
    lost: int = 0
    doubled: int = 0
    wrong_bytes: int = 0
    repeated: int = 0
    seconds: float = 0.0
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong_bytes or self.problem)


def fault_of(seed: int, ray_share: float, stage_share: float) -> str:
    """The fault of a round."""
    rng = random.Random(seed)
    drawn = rng.random()
    if drawn < ray_share:
        return rng.choice([*RAY_FAULTS])
    return rng.choice([*(STAGES if drawn < ray_share + stage_share else LOCAL_FAULTS)])


def run_round(seed: int, folder: Path, reference: dict[str, bytes], fault: str) -> Verdict:
    """Run a round; the moment and the target of the fault follow from the seed."""
    verdict, started = Verdict(fault), time.monotonic()
    case = Round(seed, folder, N_WORKERS if fault in RAY_FAULTS else 0)
    try:
        {**LOCAL_FAULTS, **RAY_FAULTS}[fault](case)
        verdict.problem = case.finish()
        _compare(case, reference, verdict)
    except (AssertionError, StoreError) as error:
        verdict.problem = str(error)
    finally:
        case.end()
    verdict.seconds = time.monotonic() - started
    return verdict


def run_stage_round(seed: int, folder: Path, stages: Stages, fault: str) -> Verdict:
    """Run a round with a command of intro-pipe; lost files are counted as lost rows."""
    verdict, started, stage = Verdict(fault), time.monotonic(), STAGES[fault]
    reference = stages.reference(stage)
    place = stages.copy(stage, folder / "place")
    try:
        kill(place, stage, random.Random(seed), reference.seconds)
        finish(place, stage)
        found = outcome_of(place)
        verdict.lost = len(reference.files.keys() - found.keys())
        verdict.wrong_bytes = sum(found.get(k) != v for k, v in reference.files.items())
        verdict.wrong_bytes += len(found.keys() - reference.files.keys())
        verdict.repeated = max(0, n_units(place) - reference.n_units)
    except AssertionError as error:
        verdict.problem = str(error)
    verdict.seconds = time.monotonic() - started
    return verdict


def reference_in(folder: Path) -> dict[str, bytes]:
    """The files of an undisturbed set."""
    undisturbed = Round(-1, folder)
    assert undisturbed.finish() == ""
    return files_of(undisturbed.found())


def files_of(found: FeatureSet) -> dict[str, bytes]:
    """The files of the set that must be the same in every run."""
    storage = found.shard_set.storage
    keys = [key for key in storage.keys("") if key.split("/")[0] not in UNCOMPARED]
    return {key: storage.read(key) for key in keys}


def _compare(case: Round, reference: dict[str, bytes], verdict: Verdict) -> None:
    found = case.found()
    files = files_of(found)
    verdict.wrong_bytes = sum(files.get(key) != data for key, data in reference.items())
    verdict.wrong_bytes += len(files.keys() - reference.keys())
    verdict.lost = sum(shard.n_rows for shard in found.shard_set.missing())
    if not verdict.lost:
        rows = found.samples()["row"].tolist()
        verdict.doubled = len(rows) - len(set(rows))
        verdict.lost = len(set(range(N_ROWS)) - set(rows))
        verdict.wrong_bytes += rows != sorted(rows)
    problems = [problem for problem in verify_feature_set(found) if problem.kind != "litter"]
    verdict.wrong_bytes += len(problems)
    verdict.repeated = case.n_attempts() - N_SHARDS


@contextmanager
def _tiny_disk(place: Path, n_bytes: int = DISK_BYTES) -> Iterator[None]:
    place.mkdir()
    size = f"size={n_bytes}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=False)
    if mounted.returncode:
        raise AssertionError("a tiny disk cannot be mounted here: no right to")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _remount(place: Path, how: str) -> int:
    command = ["mount", "-o", f"remount,{how}", str(place)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode


def main() -> None:
    """Run rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first round: its number is its seed")
    parser.add_argument("--rounds", type=int, default=300, help="number of rounds")
    parser.add_argument("--ray", type=float, default=0.15, help="share of rounds on Ray")
    parser.add_argument("--stages", type=float, default=0.1, help="share of rounds with commands")
    every = [*LOCAL_FAULTS, *RAY_FAULTS, *STAGES]
    parser.add_argument("--only", choices=every, help="only this fault")
    chosen = parser.parse_args()
    verdicts: list[Verdict] = []
    with TemporaryDirectory() as top:
        (Path(top) / "reference").mkdir()
        stages: Stages | None = None
        reference = reference_in(Path(top) / "reference")
        for seed in range(chosen.first, chosen.first + chosen.rounds):
            folder = Path(top) / str(seed)
            folder.mkdir()
            fault = chosen.only or fault_of(seed, chosen.ray, chosen.stages)
            if fault in STAGES:
                stages = stages or Stages(Path(top) / "stages")
                verdict = run_stage_round(seed, folder, stages, fault)
            else:
                verdict = run_round(seed, folder, reference, fault)
            verdicts.append(verdict)
            result = "good" if verdict.is_good else f"BAD {verdict}"
            print(f"round {seed}: {verdict.fault}, {verdict.seconds:.1f} s: {result}", flush=True)
            shutil.rmtree(folder)
    print(table_of(verdicts))
    sys.exit(not all(verdict.is_good for verdict in verdicts))


def table_of(verdicts: list[Verdict]) -> str:
    """A Markdown table with a row for each kind of fault, and one for all."""
    lines = [
        "| fault | rounds | rows lost | rows doubled | wrong files | shards computed again, mean |",
        "|---|---|---|---|---|---|",
    ]
    n_rounds = Counter(verdict.fault for verdict in verdicts)
    for fault in [*sorted(n_rounds), "all"]:
        some = [verdict for verdict in verdicts if fault in (verdict.fault, "all")]
        repeated = sum(verdict.repeated for verdict in some) / len(some)
        sums = (
            sum(getattr(verdict, name) for verdict in some)
            for name in ("lost", "doubled", "wrong_bytes")
        )
        lines.append(f"| {fault} | {len(some)} | {' | '.join(map(str, sums))} | {repeated:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
