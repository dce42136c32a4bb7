"""Speed, time left and lines, with a clock set by the test."""

import io
import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from pipeline.progress import Progress, Tally, duration
from pipeline.worker import Outcome, Pace
from store.receipts import Receipt
from store.shards import Shard
from store.shardset import StagedShard

FIRST, SECOND = Shard(0, 0, 100), Shard(1, 100, 200)


class Clock:
    """A clock that only moves when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def done(shard: Shard, lane: int = 0) -> Outcome:
    return Outcome(shard, lane, 1.0, StagedShard(shard, {}, Receipt("", shard, {}, {})))


def failed(shard: Shard, lane: int = 0) -> Outcome:
    return Outcome(shard, lane, 1.0, error="it broke")


def test_speed_and_time_left_follow_from_the_clock(clock: Clock) -> None:
    tally = Tally(1000, clock=clock)
    clock.now += 10
    tally.advance(200)
    assert (tally.rows_per_s, tally.seconds_left) == (20.0, 40.0)
    assert tally.line() == "200/1,000 images (20%) · 20 images/s · 40 s left"


def test_a_speed_that_rounds_to_zero_is_not_shown(clock: Clock) -> None:
    tally = Tally(12, unit="rounds", clock=clock)
    clock.now += 30
    tally.advance(1)
    assert tally.line() == "1/12 rounds (8%) · 5 min 30 s left"


def test_no_time_left_is_shown_before_the_first_row(clock: Clock) -> None:
    tally = Tally(1000, clock=clock)
    clock.now += 10
    tally.watch([])
    assert tally.seconds_left is None
    assert tally.line() == "0/1,000 images (0%)"


def test_the_speed_is_that_of_the_last_half_minute(clock: Clock) -> None:
    tally = Tally(10_000, clock=clock)
    clock.now += 600  # a slow start
    for _ in range(40):
        clock.now += 1
        tally.advance(50)
    assert tally.rows_per_s == pytest.approx(50, rel=0.05)


def test_the_speed_falls_while_nothing_comes(clock: Clock) -> None:
    tally = Tally(10_000, clock=clock)
    clock.now += 1
    tally.advance(100)
    for _ in range(120):
        clock.now += 0.5
        tally.watch([])
    assert tally.rows_per_s == 0


def test_the_time_left_of_work_in_jumps_uses_the_average_speed(clock: Clock) -> None:
    tally = Tally(10_000, clock=clock)
    clock.now += 1
    tally.advance(1_000)
    for _ in range(99):
        clock.now += 1
        tally.advance(1)
    assert tally.seconds_left == pytest.approx((10_000 - 1_099) / 10.99)


def test_rows_of_shards_at_work_count(clock: Clock) -> None:
    tally = Tally(200, clock=clock)
    tally.watch([Pace(0, FIRST, 30), Pace(1, SECOND, 40)])
    assert tally.n_done == 70
    tally.end(done(FIRST, lane=0))
    assert tally.n_done == 140


def test_rows_of_a_shard_that_failed_do_not_count(clock: Clock) -> None:
    tally = Tally(200, clock=clock)
    tally.watch([Pace(0, FIRST, 90)])
    tally.end(failed(FIRST, lane=0))
    assert (tally.n_done, tally.paces) == (0, {})


def test_an_end_leaves_the_next_shard_of_its_lane_at_work(clock: Clock) -> None:
    tally = Tally(200, clock=clock)
    tally.watch([Pace(0, SECOND, 10)])
    tally.end(done(FIRST, lane=0))
    assert tally.n_done == 110


def test_no_more_rows_are_done_than_exist(clock: Clock) -> None:
    tally = Tally(100, clock=clock)
    tally.advance(130)
    assert tally.n_done == 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (227, "3 min 47 s"), (3600, "1 h 0 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_there_is_at_most_a_line_every_five_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("extract", 1000, stream=stream) as progress:
        progress.tally = Tally(1000, clock=clock)
        progress._last_line = clock()
        for _ in range(100):
            clock.now += 0.25
            progress.advance(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "extract: 200/1,000 images (20%) · 40 images/s · 20 s left"


def test_a_remark_follows_the_numbers(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("train", 100, stream=stream) as progress:
        progress.tally = Tally(100, clock=clock)
        progress.remark("epoch 1/2: loss 0.5")
        clock.now += 1e9
        progress.advance(0)
    assert stream.getvalue().endswith("· epoch 1/2: loss 0.5\n")


def test_a_phase_is_shown_until_the_first_row(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("extract", 100, stream=stream) as progress:
        progress.tally = Tally(100, clock=clock)
        for paces in ([], [Pace(0, FIRST, 0)], [Pace(0, FIRST, 20)]):
            clock.now += 1e9
            progress.watch(paces, "starting Ray")
    waiting = "extract: 0/100 images (0%) · starting Ray"
    assert stream.getvalue().splitlines()[:2] == [waiting] * 2
    assert "Ray" not in stream.getvalue().splitlines()[2]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """Our end of a pseudo-terminal, and the stream that a program would write to."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream
    os.close(ours)


def shown_on(terminal: int) -> str:
    """All that waits to be read; one read of a terminal gives 4 KB at most."""
    os.set_blocking(terminal, False)
    content = b""
    while True:
        try:
            content += os.read(terminal, 65_536)
        except BlockingIOError:
            return content.decode()


def test_a_terminal_shows_one_display_with_a_bar_for_every_lane(
    terminal: tuple[int, TextIO],
) -> None:
    ours, stream = terminal
    with Progress("extract", 200, stream=stream) as progress:
        progress.watch([Pace(0, FIRST, 50), Pace(1, SECOND, 25)])
        assert progress._live is not None
        progress._live.refresh()
    shown = shown_on(ours)
    for text in ("extract", "75/200 images", "worker 0", "worker 1", "shard 1"):
        assert text in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_dumb_terminal_gets_lines_without_escape_codes(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    ours, stream = terminal
    monkeypatch.setenv("TERM", "dumb")
    with Progress("extract", 200, stream=stream) as progress:
        progress.tally = Tally(200, clock=clock)
        clock.now += 1e9
        progress.watch([Pace(0, FIRST, 50)])
        progress.note("retrying shard 1")
    shown = shown_on(ours)
    assert shown.splitlines()[1] == "extract: retrying shard 1"
    assert shown.startswith("extract: 50/200 images")
    assert "\x1b" not in shown


def test_an_error_stops_the_display(terminal: tuple[int, TextIO]) -> None:
    ours, stream = terminal
    with pytest.raises(KeyboardInterrupt), Progress("extract", 200, stream=stream):
        raise KeyboardInterrupt
    assert shown_on(ours).rstrip().endswith("\x1b[?25h")
