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
    from pipeline.executors import Executor
    from pipeline.journal import Journal, Run

T = TypeVar("T")


class Execution(BaseModel):
    """Which workers and devices compute. A stage says which of these it uses."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    executor: Literal["ray", "local"] = Field("ray", description=execution_help.EXECUTOR)
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

    def workers(self, *, on_gpus: bool = True) -> tuple[Executor, str]:
        """The executor, and the device that its workers compute on.

        Args:
            on_gpus: whether the work can use GPUs.

        Raises:
            ResourceError: the options contradict each other, or what they request does not exist.
        """
        return self.once(("workers", on_gpus), lambda: self._workers(on_gpus=on_gpus))

    def _workers(self, *, on_gpus: bool) -> tuple[Executor, str]:
        from pipeline.cluster import Cluster, n_visible_gpus, total
        from pipeline.executors import LocalExecutor
        from pipeline.memory import bytes_of
        from pipeline.ray_executor import RayExecutor

        asked = self.execution
        is_local = asked.executor == "local"
        memory_bytes = None if asked.memory is None else bytes_of(asked.memory)
        if is_local and (asked.address or asked.workers or (asked.gpus or 0) > 1):
            raise ResourceError(
                "the local executor is one worker in this process: leave out --workers, --address "
                "and --gpus above 1, or use --executor ray"
            )
        cluster = Cluster(asked.address)
        n_gpus = asked.gpus
        if asked.workers or not on_gpus:
            n_gpus = 0
        elif n_gpus is None:
            n_gpus = n_visible_gpus() if is_local else int(total(cluster.nodes(), "GPU"))
        device = "cuda" if n_gpus else "cpu"
        if asked.device and on_gpus:
            device = self.device
        if is_local:
            RayExecutor(n_gpus).check()  # raises if there is no such GPU
            return LocalExecutor(memory_bytes=memory_bytes), device
        return RayExecutor(n_gpus, asked.workers, cluster, memory_bytes=memory_bytes), device
