"""Ray clusters, existing or started by us, and the resources of their nodes.

Ray is imported only in this module, and only when it is needed.
"""

import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.cpus import n_cpus
from pipeline.errors import ResourceError
from pipeline.isolation import neutral_folder, private_folder
from pipeline.memory import for_workers
from pipeline.signals import kept_sigterm_handler
from pipeline.watchdog import marked, watchdog

Resources = Mapping[str, float]
"""Resources of a node under Ray's names: CPU, GPU, memory in bytes."""

_QUIET = {"logging_level": "ERROR", "log_to_driver": False}

CONNECT_S = 5.0
"""Seconds within which a cluster must respond; Ray itself waits 80 s for a missing one."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Attributes:
        given: address (``auto``, ``ray://host:10001``, ``host:6379``). ``None`` uses
            ``RAY_ADDRESS``, or the cluster that this program has already connected to, or else
            starts a cluster on this machine for the duration of each connection.
    """

    given: str | None = None

    @property
    def address(self) -> str | None:
        """The address; ``None`` for an existing connection and for a cluster of our own."""
        address = self.given or os.environ.get("RAY_ADDRESS") or "local"
        return None if address == "local" else address

    @property
    def is_joined(self) -> bool:
        """Whether it is a cluster that others have started, which may grow."""
        return bool(self.address) or _is_connected()

    def nodes(self) -> list[Resources]:
        """Resources of each node; of an existing cluster, as they were when first seen.

        Raises ``ResourceError`` if there is no cluster at the address.
        """
        if self.is_joined:
            return self._seen_first
        return [{"CPU": n_cpus(), "GPU": n_visible_gpus(), "memory": for_workers()}]

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Connect to Ray and yield its module; an existing connection is left open afterwards."""
        if self.address is None and "ray" not in sys.modules:  # Ray reads these when imported
            # A token for the lifetime of this process closes our cluster to other users.
            if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # Listen on the loopback interface only, as Ray does on Windows and macOS.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with redirect_stdout(sys.stderr):  # Ray prints messages, stdout is for results
            import ray

            if ray.is_initialized():
                yield ray
                return
            with _joined(ray, self.address) if self.address else _started(ray):
                yield ray

    @cached_property
    def _seen_first(self) -> list[Resources]:
        with self.connected() as ray:
            return nodes_now(ray)


def nodes_now(ray: Any) -> list[Resources]:
    """Resources of each node that is alive in the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(nodes: Sequence[Resources], name: str) -> float:
    """Sum of a resource over all nodes."""
    return sum(node.get(name, 0.0) for node in nodes)


def gpus_of_this_actor() -> list[str]:
    """Indexes, on this node, of the GPUs assigned to the actor that calls this."""
    import ray

    return list(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def n_visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without starting a driver or importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def _is_connected() -> bool:
    """Whether this program has connected to Ray already; does not import it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@contextmanager
def _started(ray: Any) -> Iterator[None]:
    """Start a cluster on this machine, in a private folder, and stop it after the block."""
    with private_folder() as folder, watchdog(folder) as mark:
        own = {"include_dashboard": False, "num_cpus": n_cpus(), "_temp_dir": folder}
        keeping = kept_sigterm_handler(exit_codes=(1, signal.SIGTERM))
        with _shut_down(ray):
            try:
                with _real_stderr(), neutral_folder(), marked(mark), keeping:
                    ray.init("local", **_QUIET, **own)
            except Exception as error:  # Ray also raises plain exceptions
                raise ResourceError(
                    f"cannot start a Ray cluster on this machine ({last_line(error)}): "
                    "--executor local does not need one"
                ) from error
            yield


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """Join the cluster at an address; it keeps running after the block."""
    with _shut_down(ray):
        try:
            if address != "auto":
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
            keeping = kept_sigterm_handler(exit_codes=(signal.SIGTERM,))
            with _real_stderr(), neutral_folder(), keeping:
                ray.init(address, **_QUIET)
        except (OSError, RuntimeError, ValueError, SystemExit, ray.exceptions.RayError) as error:
            raise ResourceError(
                f"cannot join a Ray cluster at {address} ({last_line(error)}): start one with "
                "`ray start --head`, or leave out --address and RAY_ADDRESS to use this machine "
                "alone"
            ) from error
        yield


@contextmanager
def _real_stderr() -> Iterator[None]:
    """Let both streams be stderr itself, not the stand-in of a progress display.

    Ray keeps the streams that it finds when it starts, and resets the colours of the terminal
    through them at exit. A display that has ended would print that as text.
    """
    stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    with redirect_stdout(stderr), redirect_stderr(stderr):
        yield


@contextmanager
def _shut_down(ray: Any) -> Iterator[None]:
    """Disconnect from the cluster after the block, even if it fails."""
    try:
        yield
    finally:
        ray.shutdown()


def last_line(error: BaseException | None) -> str:
    """Last line of an error, where Ray puts the reason, after names and traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
