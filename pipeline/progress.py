"""Progress of a run: a live display on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO

from pipeline.terminal import printable, printable_line

if TYPE_CHECKING:
    from types import TracebackType

    from rich.live import Live
    from rich.table import Table

    from pipeline.worker import Outcome, Pace

LINE_EVERY_S = 5.0
SPEED_WINDOW_S = 30.0


@dataclass
class Tally:
    """Counts rows done and to do, and measures the speed: the numbers behind every display.

    The speed covers the last half minute, so that a slow start does not distort the time left.
    """

    n_rows: int
    unit: str = "images"
    clock: Callable[[], float] = time.monotonic
    n_finished: int = 0
    paces: dict[int, Pace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._history: list[tuple[float, int]] = [(self.started, 0)]

    def watch(self, paces: Sequence[Pace]) -> None:
        """Update the progress of the lanes."""
        for pace in paces:
            self.paces[pace.lane] = pace
        self._remember()

    def advance(self, n_rows: int) -> None:
        """Count rows that are finished."""
        self.n_finished += n_rows
        self._remember()

    def end(self, outcome: Outcome) -> None:
        """Count a task that ended; if it failed, its rows remain to be done."""
        held = self.paces.get(outcome.lane)
        if held is not None and held.task == outcome.task:
            del self.paces[outcome.lane]
        self.advance(0 if outcome.error else outcome.task.n_rows)

    @property
    def n_done(self) -> int:
        """Rows computed so far, including those of unfinished tasks."""
        return min(self.n_rows, self.n_finished + sum(pace.n_rows for pace in self.paces.values()))

    @property
    def rows_per_s(self) -> float:
        """Speed over the last half minute."""
        (then, before), (now, done) = self._history[0], self._history[-1]
        return max(0.0, (done - before) / (now - then)) if now > then else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time left at the current speed, or at the average speed if that is higher.

        ``None`` while both are 0. Trainings that stop early advance in jumps.
        """
        now, done = self._history[-1]
        whole = done / (now - self.started) if now > self.started else 0.0
        speed = max(self.rows_per_s, whole)
        return (self.n_rows - self.n_done) / speed if speed else None

    def line(self) -> str:
        """One line: ``240,000/950,000 images (25 %) · 3,120 images/s · 3 min 47 s left``."""
        share = self.n_done / self.n_rows if self.n_rows else 1.0
        parts = [f"{self.n_done:,}/{self.n_rows:,} {self.unit} ({share:.0%})"]
        if self.rows_per_s >= 0.5:  # rounds are slower; "0 rounds/s" says nothing
            parts.append(f"{self.rows_per_s:,.0f} {self.unit}/s")
        if self.seconds_left is not None and self.n_done < self.n_rows:
            parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(parts)

    def _remember(self) -> None:
        now = self.clock()
        self._history.append((now, self.n_done))
        while len(self._history) > 2 and now - self._history[1][0] > SPEED_WINDOW_S:
            self._history.pop(0)


def duration(seconds: float) -> str:
    """Format a duration.

    >>> duration(227)
    '3 min 47 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Displays a tally on stderr during a ``with`` block.

    ``unit`` is the name of the rows in the plural, ``task`` that of what a worker does at a time.
    """

    def __init__(
        self,
        title: str,
        n_rows: int,
        *,
        unit: str = "images",
        task: str = "shard",
        stream: TextIO | None = None,
    ) -> None:
        self.title = printable_line(title)
        self.task = task
        self.tally = Tally(n_rows, unit)
        self._stream = stream or sys.stderr
        self._live: Live | None = None
        self._last_line = self.tally.clock()
        self._phase = ""
        self._remark = ""

    def __enter__(self) -> Self:
        if not self._stream.isatty():
            return self
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream)
        if not console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, paces: Sequence[Pace], phase: str = "") -> None:
        """Update the progress of the lanes; ``phase`` is shown until the first row is done."""
        self._phase = phase
        self.tally.watch(paces)
        self._say()

    def advance(self, n_rows: int) -> None:
        """Count rows that are finished."""
        self.tally.advance(n_rows)
        self._say()

    def end(self, outcome: Outcome) -> None:
        """Count a task that ended, successfully or not."""
        self.tally.end(outcome)
        self._say()

    def remark(self, text: str) -> None:
        """Set the text after the numbers, such as the loss of the last epoch."""
        self._remark = f" · {text}"

    def note(self, line: str) -> None:
        """Print a line that stays visible."""
        text = printable(f"{self.title}: {line}")
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _say(self) -> None:
        now = self.tally.clock()
        if self._live is None and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            print(f"{self.title}: {self._line()}", file=self._stream, flush=True)

    def _line(self) -> str:
        phase = f" · {self._phase}" if self._phase and not self.tally.n_done else ""
        return self.tally.line() + phase + self._remark

    def _render(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(1, self.tally.n_rows), completed=self.tally.n_done, width=30),
            Text(self._line()),
        )
        for lane, pace in sorted(self.tally.paces.items()):
            table.add_row(
                Text(f"  worker {lane}", style="dim"),
                ProgressBar(total=pace.task.n_rows, completed=pace.n_rows, width=30),
                Text(f"{self.task} {pace.task.index}", style="dim"),
            )
        return table
