"""Where stages run: the store, the data root, workers and devices. No result depends on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pipeline import execution_help
from pipeline.errors import ResourceError
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from pipeline.cluster import Cluster
    from pipeline.executors import Executor
    from pipeline.journal import Journal, Run

T = TypeVar("T")


class Execution(BaseModel):
    """Which workers and devices compute. A stage says which of these it uses."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    executor: Literal["auto", "local", "ray"] = Field("auto", description=execution_help.EXECUTOR)
    gpus: NonNegativeInt | None = Field(None, description=execution_help.GPUS)
    workers: PositiveInt | None = Field(None, description=execution_help.WORKERS)
    memory: str | None = Field(None, description=execution_help.MEMORY)
    address: str | None = Field(None, description=execution_help.ADDRESS)
    device: str | None = Field(None, description=execution_help.DEVICE)


@dataclass(frozen=True)
class Heading:
    """The name of a recipe, and what its report says first."""

    name: str
    title: str
    about: str


@dataclass(frozen=True)
class Workspace:
    """Where stages run.

    Attributes:
        store: where outputs are stored.
        data_root: folder of the data sets.
        execution: workers and devices.
        recipe: the recipe whose steps are made, if any. Outputs whose stage has no ``name`` are
            then named after their plan, so that an output of the same plan is found under any
            name; else, after their model.
        command: the command line that was entered, without the name of the program.
        resumes: the run that is continued, if ``command`` is from its journal.
        named_by: source of the names of code that stages run, for messages, such as "the recipe".
    """

    store: FeatureStore
    data_root: str = ""
    execution: Execution = field(default_factory=Execution)
    recipe: Heading | None = None
    command: tuple[str, ...] = ()
    resumes: Run | None = None
    named_by: str = "the stage"
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def journal(self, stage: Mapping[str, Any]) -> Journal:  # Any: JSON
        """The journal of a run that makes a stage; nothing is written before it begins."""
        from pipeline.journal import Journal

        place = self.store.location
        return Journal.of(place, self.command, stage, self.data_root, self.resumes)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns for this key, called once per workspace."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def output_name(self, kind: str, given: str | None, plain: str, stem: str, plan: Plan) -> str:
        """Name of an artifact.

        Args:
            kind: kind of the artifact.
            given: the name that the user chose, if any.
            plain: the default name.
            stem: prefix of the fingerprint if the artifact is named after its plan.
            plan: plan of the artifact.
        """
        if given or self.recipe is None:
            return given or plain
        mine = self.store.artifact(kind, f"{stem}-{fingerprint(plan)[:8]}")
        if mine.is_complete():
            return mine.name
        return next(iter(self.store.made_by(kind, plan)), mine).name

    @property
    def device(self) -> str:
        """The device of computations in this process.

        Raises:
            ResourceError: this machine does not have the requested device.
        """
        from pipeline.cluster import n_visible_gpus

        n_gpus = n_visible_gpus()
        asked = self.execution.device or ("cuda" if n_gpus else "cpu")
        known = ["cpu", *(["cuda"] if n_gpus else [])]
        known += [f"cuda:{index}" for index in range(n_gpus)]
        if asked not in known:
            raise ResourceError(f"--device {asked}: this machine has {', '.join(known)}")
        return asked

    def workers(self, *, n_single_threaded: int = 0) -> tuple[Executor, str]:
        """The executor, and the device that its workers compute on.

        Args:
            n_single_threaded: number of tasks, if each uses one core and no GPU; 0 for tasks that
                use a GPU, or all cores of their process.

        Raises:
            ResourceError: the options contradict each other, or what they request does not exist.
        """
        key = ("workers", n_single_threaded)
        return self.once(key, lambda: self._workers(n_single_threaded))

    def _workers(self, n_single_threaded: int) -> tuple[Executor, str]:
        from pipeline.cluster import Cluster
        from pipeline.executors import LocalExecutor
        from pipeline.memory import bytes_of
        from pipeline.ray_executor import RayExecutor

        asked = self.execution
        memory_bytes = None if asked.memory is None else bytes_of(asked.memory)
        if asked.executor == "local" and (asked.address or self._n_asked > 1):
            raise ResourceError(
                "the local executor is one worker in this process: leave out --address, and "
                "--workers and --gpus above 1, or use --executor ray"
            )
        cluster = Cluster("local" if asked.executor == "local" else asked.address)
        n_gpus = self._n_gpus(cluster, n_single_threaded)
        device = "cuda" if n_gpus else "cpu"
        if asked.device and not n_single_threaded:
            device = self.device
        if self._is_local(cluster, n_gpus, n_single_threaded):
            RayExecutor(n_gpus, cluster=cluster).check()  # raises if there is no such GPU
            return LocalExecutor(memory_bytes=memory_bytes), device
        return RayExecutor(n_gpus, asked.workers, cluster, memory_bytes=memory_bytes), device

    @property
    def _n_asked(self) -> int:
        """Number of workers that the options ask for; 0 if they leave it open."""
        return max(self.execution.workers or 0, self.execution.gpus or 0)

    def _n_gpus(self, cluster: Cluster, n_single_threaded: int) -> int:
        """Number of GPUs to use; 0 for workers on CPUs."""
        from pipeline.cluster import total

        if self.execution.workers or n_single_threaded:
            return 0
        if self.execution.gpus is not None:
            return self.execution.gpus
        return int(total(cluster.nodes(), "GPU"))

    def _is_local(self, cluster: Cluster, n_gpus: int, n_single_threaded: int) -> bool:
        """Whether to run in this process: by default if a single worker would do all the work."""
        from pipeline.cpus import n_cpus

        if self.execution.executor != "auto":
            return self.execution.executor == "local"
        n_workers = self._n_asked or n_gpus or min(n_single_threaded, n_cpus() - 1)
        return n_workers <= 1 and not cluster.is_joined
