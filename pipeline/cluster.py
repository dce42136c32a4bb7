"""A Ray cluster, one that others started or our own, and what its nodes have.

Ray is imported here alone.
"""

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import ResourceError
from pipeline.memory import for_workers

Resources = Mapping[str, float]
"""Of a node, as Ray names them: CPU, GPU, memory in bytes."""

CONNECT_S = 5.0
"""How long a cluster may take to answer; Ray itself waits 80 s for one that is not there."""


@dataclass(frozen=True)
class Cluster:
    """The cluster at an address (``auto``, ``ray://host:10001``, ``host:6379``).

    Without one, that of ``RAY_ADDRESS``, or one that this program has connected to already; else a
    cluster of this machine, started and stopped with each connection.
    """

    given: str | None = None

    @property
    def address(self) -> str | None:
        """Where it is; None for one that the program has connected to, and for our own."""
        return self.given or os.environ.get("RAY_ADDRESS") or None

    @property
    def is_joined(self) -> bool:
        """Whether it is one that others have started, and that may grow."""
        return bool(self.address) or _is_connected()

    def nodes(self) -> list[Resources]:
        """What each node has, of a cluster that is joined as it was seen first.

        Raises ``ResourceError`` where there is none.
        """
        if self.is_joined:
            return self._seen_first
        n_cpus = os.cpu_count() or 1
        return [{"CPU": n_cpus, "GPU": n_visible_gpus(), "memory": for_workers()}]

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Ray, connected; where the program was connected already, it is left so."""
        if self.address is None and "ray" not in sys.modules:  # which reads these at its import
            # A cluster of our own is closed to other users by a token that lives as long as we do.
            if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # It listens on the loopback alone: a switch for systems that ask about ports.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with redirect_stdout(sys.stderr):  # Ray prints what it has to say among our results
            import ray

            if ray.is_initialized():
                yield ray
                return
            try:
                _connect(ray, self.address)
                yield ray
            finally:
                ray.shutdown()

    @cached_property
    def _seen_first(self) -> list[Resources]:
        with self.connected() as ray:
            return nodes_now(ray)


def nodes_now(ray: Any) -> list[Resources]:
    """What each node has of the cluster that Ray is connected to."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(nodes: Sequence[Resources], name: str) -> float:
    """Of all nodes together."""
    return sum(node.get(name, 0.0) for node in nodes)


def gpus_of_this_actor() -> list[str]:
    """Their numbers on this node, in an actor."""
    import ray

    return list(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def n_visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without starting a driver or importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def _is_connected() -> bool:
    """Whether this program has connected to Ray already; never imports it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _connect(ray: Any, address: str | None) -> None:
    if address is None:
        ray.init("local", logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        return
    try:
        if address not in ("auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        ray.init(address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError, SystemExit, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"cannot join a Ray cluster at {address} ({last_line(error)}): start one with "
            "`ray start --head`, or leave out --address and RAY_ADDRESS to use this machine alone"
        ) from error


def last_line(error: BaseException | None) -> str:
    """Where Ray says what happened, behind names and traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
