"""Real processes on a real disk, hurt in every way we know, round after round, by seed.

Each round makes one set of squares by a command of its own, does it some harm at a random moment,
gives the same command again until it succeeds, and compares what is there with a set that nothing
disturbed: rows, order, bytes, checksums. Attempts at shards are counted, so that work done twice is
known. Some rounds do the same to commands of intro-pipe: see ``campaign_stages``.

    python tests/campaign.py --rounds 300
    python tests/campaign.py --first 17 --rounds 1       # round 17 again
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
"""Folders that say when and by whom something was done, or keep what was hurt."""

MAX_TRIES = 4
DISK_BYTES = 96 * 1024
"""Too little for the set, so that the disk runs full under way."""


@dataclass
class Round:
    """A store in a folder of its own, and the processes that were started for it."""

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
        """The command, in a process group of its own."""
        if self.n_workers:  # the work must last longer than it takes to notice that a node is gone
            pause_s = 20 * PAUSE_S
        words = (self.store, self.attempts, N_ROWS, SHARD_ROWS, pause_s, self.n_workers)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("squares.py")), *map(str, words)],
            env={**os.environ, MARK: self.mark, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Who runs in the background of a shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def finish(self) -> str:
        """Give the command until it succeeds; the last error where it never does."""
        error = ""
        for _ in range(MAX_TRIES):
            process = self.start()
            error = process.communicate()[1]
            if process.returncode == 0:
                return ""
        return error or "no error was told"

    def wait_for(self, process: subprocess.Popen[str], n_receipts: int) -> None:
        """Until so many shards are done, or the process has ended."""
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
        """Processes of this round that are alive, those whose command line has these words."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_ours = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes()
                if is_ours and words.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def kill_driver(hurt: Round) -> None:
    """The driver and its workers, at once."""
    process = hurt.start()
    hurt.wait_for(process, hurt.some_receipts())
    time.sleep(hurt.rng.uniform(0, PAUSE_S))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_driver_early(hurt: Round) -> None:
    """In its first steps, before any shard is done."""
    process = hurt.start()
    time.sleep(hurt.rng.uniform(0.3, 1.5))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def interrupt(hurt: Round) -> None:
    """As Ctrl-C does."""
    process = hurt.start()
    hurt.wait_for(process, hurt.some_receipts())
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.communicate()


def two_drivers(hurt: Round) -> None:
    """A second one starts while the first is at work, and is refused."""
    first = hurt.start(pause_s=20 * PAUSE_S)
    hurt.wait_for(first, 1)
    _require_refusal(hurt, first)
    first.communicate()


def suspend(hurt: Round) -> None:
    """The driver stops, another starts and is refused, and it goes on."""
    first = hurt.start()
    hurt.wait_for(first, hurt.rng.randint(1, N_SHARDS // 2))
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGSTOP)
    _require_refusal(hurt, first)
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGCONT)
    first.communicate()


def _require_refusal(hurt: Round, first: subprocess.Popen[str]) -> None:
    """Another driver is told who is at work, unless there was nothing left to do."""
    second = hurt.start()
    error = second.communicate()[1]
    is_refused = second.returncode != 0 and _named(first) in error
    if not is_refused and len(hurt.receipts()) < N_SHARDS:
        raise AssertionError(f"a second driver was not refused: {second.returncode} {error[-500:]}")


def _named(first: subprocess.Popen[str]) -> str:
    """What the refusal has to say."""
    return f"(pid {first.pid} on "


def clock_jumps(hurt: Round) -> None:
    """Of a driver that others know by its heartbeat alone: they watch it, and see that it lives."""
    first = hurt.start(pause_s=2.5, SQUARES_CLOCK_JUMPS="1")
    hurt.wait_for(first, 5)  # by then it has beaten once, an hour ahead
    _require_refusal(hurt, first)
    first.communicate()


def failing_disk(hurt: Round) -> None:
    """Calls of the file system fail with EIO, ENOSPC and EROFS, wherever; then they do not."""
    hurt.start(SQUARES_DISK_FAILS=str(hurt.seed)).communicate()


def orphaned_lease(hurt: Round) -> None:
    """The lease of a driver on another machine that was lost: watched, then taken over."""
    lease = hurt.found().shard_set.storage
    facts = {
        **{"host": "lost", "kernel": "lost", "pid": 1, "process_started": "1", "token": "x"},
        **{"purpose": "extract", "heartbeat": 0.0, "is_released": False},
    }
    lease.write("lease/00000005.json", json.dumps(facts).encode())


def full_disk(hurt: Round) -> None:
    """The disk runs full; then there is space again."""
    with _tiny_disk(hurt.store):
        process = hurt.start()
        process.communicate()
        kept = hurt.folder / "kept"
        shutil.copytree(hurt.store, kept)
    shutil.rmtree(hurt.store)
    kept.rename(hurt.store)


def read_only_disk(hurt: Round) -> None:
    """The file system becomes read-only, as one does that has found itself damaged."""
    with _tiny_disk(hurt.store, n_bytes=16 * DISK_BYTES):
        process = hurt.start()
        hurt.wait_for(process, hurt.rng.randint(1, N_SHARDS // 2))
        while process.poll() is None and _remount(hurt.store, "ro"):
            time.sleep(0.001)  # a file is being written: not now
        process.communicate()
        kept = hurt.folder / "kept"
        shutil.copytree(hurt.store, kept)
    shutil.rmtree(hurt.store)
    kept.rename(hurt.store)


def damage(change: Callable[[random.Random, bytes], bytes | None]) -> Callable[[Round], None]:
    """Hurt any file of a finished set; verify must find it, repair take back what is hurt."""

    def hurt_file(hurt: Round) -> None:
        hurt.finish()
        found = hurt.found()
        storage = found.shard_set.storage
        keys = [key for key in storage.keys("") if not key.startswith("lease/")]
        key = hurt.rng.choice(keys)
        place = Path(storage.location, key)
        if (data := change(hurt.rng, place.read_bytes())) is None:
            place.unlink()
        else:
            place.write_bytes(data)
        problems = list(verify_feature_set(found))
        is_missing_shard = key.startswith("receipts/") and not place.exists()
        if all(problem.is_harmless for problem in problems) and not is_missing_shard:
            raise AssertionError(f"verify has not found the damage to {key}")
        repair(found.shard_set, problems)

    return hurt_file


def _flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def kill_worker(hurt: Round) -> None:
    """One actor; the run goes on by itself."""
    process = hurt.start()
    hurt.wait_for(process, max(1, hurt.some_receipts()))
    pids = [int(path.name.split("-")[1]) for path in hurt.attempts.glob("setup-*")]
    if pids:
        with suppress(ProcessLookupError):
            os.kill(hurt.rng.choice(pids), signal.SIGKILL)
    error = process.communicate()[1]
    if process.returncode:
        raise AssertionError(f"a run did not survive the death of a worker: {error[-500:]}")


def kill_raylet(hurt: Round) -> None:
    """The node with everything on it; the driver is told, and ends."""
    process = hurt.start()
    hurt.wait_for(process, max(1, hurt.some_receipts()))
    for pid in hurt.pids("raylet/raylet"):
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
"""Faults that hit a command of intro-pipe."""


@dataclass
class Verdict:
    """What a round came to."""

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
    """What happens in a round."""
    rng = random.Random(seed)
    drawn = rng.random()
    if drawn < ray_share:
        return rng.choice([*RAY_FAULTS])
    return rng.choice([*(STAGES if drawn < ray_share + stage_share else LOCAL_FAULTS)])


def run_round(seed: int, folder: Path, reference: dict[str, bytes], fault: str) -> Verdict:
    """One round; the moment of the fault, and whom it hits, follow from the seed."""
    verdict, started = Verdict(fault), time.monotonic()
    hurt = Round(seed, folder, N_WORKERS if fault in RAY_FAULTS else 0)
    try:
        {**LOCAL_FAULTS, **RAY_FAULTS}[fault](hurt)
        verdict.problem = hurt.finish()
        _compare(hurt, reference, verdict)
    except (AssertionError, StoreError) as error:
        verdict.problem = str(error)
    finally:
        hurt.end()
    verdict.seconds = time.monotonic() - started
    return verdict


def run_stage_round(seed: int, folder: Path, stages: Stages, fault: str) -> Verdict:
    """A round with a command of intro-pipe; its lost files are counted as rows are."""
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
    """The files of a set that nothing disturbed."""
    undisturbed = Round(-1, folder)
    assert undisturbed.finish() == ""
    return files_of(undisturbed.found())


def files_of(found: FeatureSet) -> dict[str, bytes]:
    """The files of the set that must always be the same."""
    storage = found.shard_set.storage
    keys = [key for key in storage.keys("") if key.split("/")[0] not in UNCOMPARED]
    return {key: storage.read(key) for key in keys}


def _compare(hurt: Round, reference: dict[str, bytes], verdict: Verdict) -> None:
    found = hurt.found()
    here = files_of(found)
    verdict.wrong_bytes = sum(here.get(key) != data for key, data in reference.items())
    verdict.wrong_bytes += len(here.keys() - reference.keys())
    verdict.lost = sum(shard.n_rows for shard in found.shard_set.missing())
    if not verdict.lost:
        rows = found.samples()["row"].tolist()
        verdict.doubled = len(rows) - len(set(rows))
        verdict.lost = len(set(range(N_ROWS)) - set(rows))
        verdict.wrong_bytes += rows != sorted(rows)
    problems = [problem for problem in verify_feature_set(found) if problem.kind != "litter"]
    verdict.wrong_bytes += len(problems)
    verdict.repeated = hurt.n_attempts() - N_SHARDS


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
    parser.add_argument("--rounds", type=int, default=300, help="how many")
    parser.add_argument("--ray", type=float, default=0.15, help="share of rounds on Ray")
    parser.add_argument("--stages", type=float, default=0.1, help="share of those with commands")
    every = [*LOCAL_FAULTS, *RAY_FAULTS, *STAGES]
    parser.add_argument("--only", choices=every, help="this fault alone")
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
            told = "good" if verdict.is_good else f"BAD {verdict}"
            print(f"round {seed}: {verdict.fault}, {verdict.seconds:.1f} s: {told}", flush=True)
            shutil.rmtree(folder)
    print(table_of(verdicts))
    sys.exit(not all(verdict.is_good for verdict in verdicts))


def table_of(verdicts: list[Verdict]) -> str:
    """Markdown: a row for each kind of fault, and one for all."""
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
