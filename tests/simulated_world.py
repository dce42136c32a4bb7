"""Processes, clocks and a scheduler driven by one seed, which reproduces a schedule exactly.

Production code runs in greenlets. It returns control before every step on the disk, whenever it
sleeps and whenever it waits; the seed determines which task continues, and what fails.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from greenlet import getcurrent, greenlet

EPOCH_S = 1e9


class KilledError(BaseException):
    """A process was killed: nothing in it may continue, and nothing catches this error."""


@dataclass(eq=False)
class Process:
    """A process of a host; ``stalled_until`` is the time at which it may continue."""

    host: "Host"
    pid: int
    name: str
    is_alive: bool = True
    stalled_until: float = 0.0


@dataclass(eq=False)
class Host:
    """A machine; its clock is off by ``clock_error``, and each boot has another kernel."""

    name: str
    n_boots: int = 1
    clock_error: float = 0.0


@dataclass(eq=False)
class Task:
    """A task of a process; it continues at ``wakes_at``, once ``condition`` is true.

    If there is an ``error`` to raise in it, it continues at once.
    """

    process: Process
    green: greenlet
    wakes_at: float = 0.0
    condition: Callable[[], bool] | None = None
    error: BaseException | None = None

    def is_ready(self, now: float) -> bool:
        if self.error is not None:
            return self.process.stalled_until <= now
        return max(self.wakes_at, self.process.stalled_until) <= now and (
            self.condition is None or self.condition()
        )


@dataclass
class World:
    """The scheduler. ``errors`` are those with which tasks ended, except for being killed.

    A step takes ``step_s`` on average: if that is long, the disk is as slow as the work, and much
    happens between two steps of a process.
    """

    rng: Random
    step_s: float = 0.002
    now: float = 0.0
    n_steps: int = 0
    tasks: list[Task] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scheduler = getcurrent()

    def process(self, host: Host, name: str) -> Process:
        """Create a process with a new pid."""
        made = Process(host, len(self.processes) + 1, name)
        self.processes.append(made)
        return made

    def spawn(self, process: Process, work: Callable[[], None]) -> None:
        """Start a task in a process, in addition to its other tasks."""

        def run() -> None:
            try:
                work()
            except KilledError:
                pass
            except BaseException as error:  # reported by the story's check
                self.errors.append(error)

        self.tasks.append(Task(process, greenlet(run, parent=self._scheduler)))

    def step(self) -> bool:
        """Let one task continue to its next step; returns false if none ever can."""
        self.tasks = [task for task in self.tasks if not task.green.dead]
        ready = [task for task in self.tasks if task.is_ready(self.now)]
        if not ready:
            later = [max(task.wakes_at, task.process.stalled_until) for task in self.tasks]
            later = [moment for moment in later if moment > self.now]
            if not later:
                return False
            self.now = min(later)
            return True
        self.n_steps += 1
        self.now += self.rng.expovariate(1 / self.step_s)
        task = self.rng.choice(ready)
        task.condition = None
        task.green.switch()
        return True

    def pause(self) -> None:
        """Return control to the scheduler; a killed process does not continue."""
        task = self.current
        if task.process.is_alive:
            self._scheduler.switch()
        if not task.process.is_alive:
            raise KilledError
        if (error := task.error) is not None:
            task.error, task.wakes_at = None, 0.0
            raise error

    def sleep(self, seconds: float) -> None:
        """Continue after so many seconds."""
        self.current.wakes_at = self.now + seconds
        self.pause()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Continue once the condition is true."""
        self.current.condition = condition
        self.pause()

    def interrupt(self, process: Process) -> None:
        """Raise ``KeyboardInterrupt`` in the main task of a process, as Ctrl-C does."""
        for task in self.tasks:
            if task.process is process:
                task.error = KeyboardInterrupt()
                return

    def kill(self, process: Process) -> None:
        """End a process; what it has started remains as it is."""
        if not process.is_alive:
            return
        process.is_alive = False
        for task in self.tasks:
            if task.process is process and task.green and not task.green.dead:
                task.green.switch()  # it notices, and unwinds without touching the disk
        self.tasks = [task for task in self.tasks if task.process is not process]

    @property
    def current(self) -> Task:
        """The running task."""
        green = getcurrent()
        return next(task for task in self.tasks if task.green is green)


@dataclass(frozen=True)
class SimulatedMachine:
    """Implements ``store.machine.Machine`` for one process.

    ``began`` and ``ended`` are called when it holds a lease, and starts its heartbeats, and when it
    is about to release the lease.
    """

    world: World
    process: Process
    began: Callable[[Process], None] = lambda process: None
    ended: Callable[[Process], None] = lambda process: None

    @property
    def host(self) -> str:
        return self.process.host.name

    @property
    def kernel(self) -> str:
        return f"{self.process.host.name} {self.process.host.n_boots}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def time(self) -> float:
        return EPOCH_S + self.world.now + self.process.host.clock_error

    def sleep(self, seconds: float) -> None:
        self.world.sleep(seconds)

    def started(self, pid: int) -> str:
        return f"as number {pid}" if self.world.processes[pid - 1].is_alive else ""

    def every(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        is_stopped = is_busy = False

        def beat() -> None:
            nonlocal is_busy
            while not is_stopped:
                self.world.sleep(seconds)
                is_busy = True
                if not is_stopped:
                    action()
                is_busy = False

        def stop() -> None:
            nonlocal is_stopped
            is_stopped = True
            self.ended(self.process)
            self.world.wait(lambda: not is_busy)

        self.began(self.process)
        self.world.spawn(self.process, beat)
        return stop
