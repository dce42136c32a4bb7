"""A Ray cluster of several nodes on this machine, in a separate process that takes commands.

Each node has processes, CPUs and GPUs of its own; the GPUs need not be there. What runs on a node
finds its name in ``NODE``.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from squares import Squares, plan_of

from pipeline.journal import Journal
from pipeline.ray_executor import RayExecutor
from pipeline.runner import run_map
from pipeline.work import ShardOutput, Tick
from store.catalog import FeatureStore
from store.shards import Shard

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Nodes:
    """The cluster: a head that computes nothing, and the nodes that were added."""

    process: subprocess.Popen[str]
    address: str
    environment: dict[str, str]

    def add(self, name: str, *, n_cpus: int = 0, n_gpus: int = 0) -> None:
        """Let a node join; returns once the head knows it."""
        self._tell(f"add {name} {n_cpus} {n_gpus}")

    def kill(self, name: str) -> None:
        """Kill the processes of a node."""
        self._tell(f"kill {name}")

    def _tell(self, words: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the cluster has died over `{words}`"
        return answer.strip()


@dataclass(frozen=True)
class Together(Squares):
    """Squares whose workers record node and GPU, and wait until all workers have started."""

    n_workers: int = 1

    def setup(self, n_threads: int) -> int:
        note = f"at-{os.environ['NODE']}-{os.getpid()}"
        Path(self.folder, note).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return super().setup(n_threads)

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        while len(list(Path(self.folder).glob("at-*"))) < self.n_workers:
            time.sleep(0.05)
        return super().compute(state, shard, tick)


def run_together(folder: str, executor: RayExecutor, n_workers: int) -> None:
    """A set of squares that keeps all workers busy at once."""
    stage = Together(2, folder, n_workers=n_workers)
    shards = FeatureStore(folder).prepare().create(plan_of(4 * n_workers, 2)).shard_set
    executor.check()
    run_map(stage, shards, executor, Journal.of(folder, ["together"]), title="together")


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster closed by a token, and what a driver must have in its environment to join it."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # drivers take 127.0.0.1 for what it is
        "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    found = Nodes(process, "", environment)
    try:
        yield Nodes(process, found._tell("address"), environment)
        process.communicate(timeout=30)  # at the end of its input it shuts the cluster down
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Do what the lines of standard input say; answer each with a line."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray has to say is no answer
    here = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **here})
    there = {}
    for line in sys.stdin:
        match line.split():
            case ["add", name, n_cpus, n_gpus]:
                there[name] = cluster.add_node(
                    num_cpus=int(n_cpus), num_gpus=int(n_gpus), env_vars={"NODE": name}, **here
                )
            case ["kill", name]:
                cluster.remove_node(there.pop(name), allow_graceful=False)
        print(cluster.address, file=answers)
    cluster.shutdown()


if __name__ == "__main__":
    main()
