"""The real extraction on nodes with their own names, addresses and network, one of which dies.

Each node is a network namespace on a bridge, which is in a namespace too: nothing outside is
touched. A node dies under the run, another joins, and the set must equal that of a run which
nothing disturbed.

    python tests/network.py                # a node is killed
    python tests/network.py --silent       # its cable is pulled: takes until Ray gives it up
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from test_cluster import Place, files_of, write_inputs

from store.verify import verify_feature_set

TAG = f"ip{os.getpid()}"
SWITCH = f"{TAG}-switch"
PORT = 6379
REPOSITORY = Path(__file__).parents[1]


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def reason_to_skip() -> str:
    """Why there can be no namespaces here; "" where there can."""
    try:
        ip("netns", "add", SWITCH)
        ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", SWITCH, "link", "set", "bridge", "up")
    except FileNotFoundError:
        return "there is no `ip` (iproute2)"
    except subprocess.CalledProcessError as error:
        return str(error.stderr.strip())
    return ""


class Network:
    """Nodes by name; each has the address 10.77.0.N on one bridge."""

    def __init__(self, folder: Path) -> None:
        self._addresses: dict[str, str] = {}
        self._started: list[subprocess.Popen[str]] = []
        self._folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._environment = {
            **kept,
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            **{"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
            "PYTHONPATH": str(REPOSITORY),
        }

    @property
    def address(self) -> str:
        return f"{self._addresses['head']}:{PORT}"

    def add(self, name: str, *options: str) -> None:
        """Let a node join; the first one is the head."""
        address = f"10.77.0.{len(self._addresses) + 1}"
        self._addresses[name] = address
        space = f"{TAG}-{name}"
        ip("netns", "add", space)
        ip("-n", SWITCH, "link", "add", name, "type", "veth", "peer", "eth0", "netns", space)
        ip("-n", SWITCH, "link", "set", name, "master", "bridge", "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "route", "add", "default", "dev", "eth0")
        role = ("--head", f"--port={PORT}", f"--temp-dir={self._folder}", "--num-cpus=0")
        words = role if name == "head" else (f"--address={self.address}", *options)
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *words]
        address_of_it = (f"--node-ip-address={address}", "--include-dashboard=false")
        self.start(name, *ray, *(address_of_it if name == "head" else address_of_it[:1]))

    def start(self, name: str, *command: str, **options: object) -> subprocess.Popen[str]:
        """A command on a node."""
        named = 'hostname "$0"; exec "$@"'
        inside = ["ip", "netns", "exec", f"{TAG}-{name}", "unshare", "--uts", "sh", "-c", named]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process: subprocess.Popen[str] = subprocess.Popen(
            [*inside, name, *command],
            env=self._environment,
            text=True,
            start_new_session=True,
            **{**quiet, **options},  # type: ignore[call-overload]  # what Popen takes
        )
        self._started.append(process)
        return process

    def kill(self, name: str) -> None:
        """Kill all processes of a node at once."""
        for pid in ip("netns", "pids", f"{TAG}-{name}").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def silence(self, name: str) -> None:
        """Disconnect a node: its processes run, but cannot be reached."""
        ip("-n", SWITCH, "link", "set", name, "down")

    def end(self) -> None:
        for name in self._addresses:
            self.kill(name)
        for process in self._started:
            process.wait()


@contextmanager
def network() -> Iterator[Network]:
    """Create a network and remove it afterwards; exits the program if that is not possible."""
    try:
        if reason := reason_to_skip():
            print(f"skipped: {reason}")
            sys.exit(0)
        with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
            found = Network(Path(folder))
            try:
                yield found
            finally:
                found.end()
    finally:
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
        for line in there.stdout.splitlines():
            if line.startswith(f"{TAG}-"):
                ip("netns", "delete", line.split()[0])


def main() -> None:
    """One run on three nodes, of which one is lost while another joins."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silent", action="store_true", help="pull the cable, kill nothing")
    is_silent = parser.parse_args().silent
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that all is cleaned up
    with network() as net, TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        undisturbed, disturbed = (
            Place(Path(folder), "undisturbed"),
            Place(Path(folder), "disturbed"),
        )
        quick = {**os.environ, "INTRO_PIPE_TEST_NAP_S": "0", "OMP_NUM_THREADS": "1"}
        assert undisturbed.start(quick, "--executor", "local").wait() == 0
        net.add("head")
        for name in ("one", "two"):
            net.add(name, "--num-cpus=2")
        time.sleep(10)
        process = net.start(
            "head",
            *disturbed.command("--address", net.address),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        disturbed.wait_for(6, process)
        print("6 shards are done: node one", "falls silent" if is_silent else "is killed")
        (net.silence if is_silent else net.kill)("one")
        lost_at = time.monotonic()
        net.add("three", "--num-cpus=4")
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors
        print(f"the run ended {time.monotonic() - lost_at:.0f} s later")
        tell(disturbed, undisturbed)


def tell(disturbed: Place, undisturbed: Place) -> None:
    """Report which node computed which shard; raises if the set differs."""
    attempts = disturbed.attempts()
    hosts = sorted({each["where"].partition(":")[0] for each in attempts})
    for host in hosts:
        ours = [each for each in attempts if each["where"].startswith(f"{host}:")]
        n_lost = sum(bool(each["error"]) for each in ours)
        print(f"node {host}: {len(ours) - n_lost} shards computed, {n_lost} lost")
    again = [shard for shard, n in Counter(each["shard"] for each in attempts).items() if n > 1]
    assert sorted(again) == sorted(each["shard"] for each in attempts if each["error"])
    assert "three" in hosts, "the node that joined got no work"
    assert list(verify_feature_set(disturbed.features())) == []
    assert files_of(disturbed.features()) == files_of(undisturbed.features())
    print(f"shards computed again: {len(again)}; every file equals that of an undisturbed run")


if __name__ == "__main__":
    main()
