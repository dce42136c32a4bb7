"""Options that several commands share: one spelling, one help text, one default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.executors import Executor

DEFAULT_STORE = "intro-pipe-store"

Store = Annotated[
    str,
    typer.Option(
        "--store", envvar="INTRO_PIPE_STORE", help="Folder or URL (s3://…) of the feature store."
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        envvar="INTRO_PIPE_DATA",
        help="Folder with the data sets. (default: ~/.cache/intro-pipe/data)",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Dataset = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="A name from `intro-pipe datasets`, a name under the data root, or a path.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Take only the first rows; in an image folder these are one class."
    ),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="ray: workers on a cluster. local: this process.")
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        help="GPU workers; 0 for CPU workers. (default: all of the cluster, or of this machine)",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="CPU workers. (default: all cores but one, those of nodes that join too)",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What a worker may take, as in 2G: batches are made as small as that needs. "
        "(default: an even share of what is free)",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to join: auto, host:6379 or ray://host:10001. "
        "(default: $RAY_ADDRESS, else one of this machine's own)",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1. (default: cuda if there is one)")
]


def executor_of(
    name: str,
    n_gpus: int | None,
    n_workers: int | None,
    address: str | None,
    memory: str | None = None,
) -> tuple[Executor, str]:
    """The executor that was asked for, and the device its workers compute on."""
    from pipeline.cluster import Cluster, n_visible_gpus, total
    from pipeline.executors import LocalExecutor
    from pipeline.memory import bytes_of
    from pipeline.ray_executor import RayExecutor
    from stages.errors import InputError

    memory_bytes = None if memory is None else bytes_of(memory)
    if name not in ("ray", "local"):
        raise InputError(f"executor '{name}': expected ray or local")
    if name == "local" and (address or n_workers or (n_gpus or 0) > 1):
        raise InputError(
            "the local executor is one worker in this process: leave out --workers, --address and "
            "--gpus above 1, or use --executor ray"
        )
    cluster = Cluster(address)
    if n_workers:
        n_gpus = 0
    elif n_gpus is None:
        n_gpus = n_visible_gpus() if name == "local" else int(total(cluster.nodes(), "GPU"))
    device = "cuda" if n_gpus else "cpu"
    if name == "local":
        RayExecutor(n_gpus).check()  # refuses a GPU that is not there
        return LocalExecutor(memory_bytes=memory_bytes), device
    return RayExecutor(n_gpus, n_workers, cluster, memory_bytes=memory_bytes), device


def device_of(asked: str | None) -> str:
    """The device that was asked for, or the best there is; raises ``InputError``."""
    from pipeline.cluster import n_visible_gpus
    from stages.errors import InputError

    n_gpus = n_visible_gpus()
    asked = asked or ("cuda" if n_gpus else "cpu")
    known = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{index}" for index in range(n_gpus))]
    if asked not in known:
        raise InputError(f"--device {asked}: this machine has {', '.join(known)}")
    return asked


def choice(value: str, known: Sequence[str], what: str) -> Any:  # Any: one of a Literal's values
    """The value, if it is one of those known; raises ``InputError``."""
    from stages.errors import InputError

    if value not in known:
        raise InputError(f"{what} {value}: expected {' or '.join(known)}")
    return value


def channels(text: str | None, what: str) -> tuple[float, float, float] | None:
    """``"0.49,0.48,0.45"`` as three numbers; raises ``InputError``."""
    from stages.errors import InputError

    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{what} {text}: expected three numbers with commas between") from error
    if not all(map(math.isfinite, (red, green, blue))):
        raise InputError(f"{what} {text}: expected finite numbers")
    return red, green, blue


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """``"300,100"`` as numbers, nothing for ``""`` and ``none``; raises ``InputError``."""
    from stages.errors import InputError

    if text.strip() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{what} {text}: expected whole numbers, as in 3,1") from error


def names(text: str | None) -> tuple[str, ...]:
    """``"fog,snow"`` as names; nothing for nothing."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
