"""A worker sets up once, stages what it computes, and converts every error to an outcome."""

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
from squares import Squares

from pipeline.work import ShardOutput, Tick
from pipeline.worker import Outcome, Pace, SetWork, Worker
from store.errors import WriteError
from store.featureset import FeatureSet
from store.shards import Shard


@dataclass(frozen=True)
class Breaks(Squares):
    """Fails with a given error, in ``setup`` or in ``compute``."""

    error: BaseException | None = None
    breaks_setup: bool = False

    def setup(self, n_threads: int) -> int:
        if self.breaks_setup and self.error is not None:
            raise self.error
        return n_threads

    def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
        if self.error is not None:
            raise self.error
        return super().compute(state, shard, tick)


def outcomes(stage: Squares, begun: FeatureSet, n_shards: int = 1) -> list[Outcome]:
    worker = Worker(SetWork(stage, begun.shard_set), lane=3, n_threads=1)
    return [worker.run(shard) for shard in begun.shard_set.shards[:n_shards]]


def test_a_stage_is_set_up_once_with_the_threads_it_may_use(
    begun: FeatureSet, tmp_path: Path
) -> None:
    assert [outcome.error for outcome in outcomes(Squares(4, str(tmp_path)), begun, 3)] == [""] * 3
    assert len(list(tmp_path.glob("setup-*-1"))) == 1


def test_an_outcome_carries_the_staged_shard_and_the_lane(
    begun: FeatureSet, tmp_path: Path
) -> None:
    (outcome,) = outcomes(Squares(4, str(tmp_path), nan_rows=(1, 2)), begun)
    assert outcome.staged is not None
    receipt = outcome.staged.receipt
    assert (outcome.lane, outcome.n_failed_rows, receipt.shard) == (3, 2, Shard(0, 0, 4))
    assert set(receipt.facts["versions"]) == {"intro-pipe", "numpy", "torch", "zarr"}


@pytest.mark.parametrize(
    ("error", "message", "is_final", "stops_run"),
    [
        (RuntimeError("it may pass"), "RuntimeError: it may pass", False, False),
        (OSError("network away"), "OSError: network away", False, False),
        (ValueError("bad shape"), "ValueError: bad shape", True, False),
        (TypeError("bad type"), "TypeError: bad type", True, False),
        (RuntimeError("one\ntwo\nthree"), "RuntimeError: one", False, False),
        (RuntimeError(), "RuntimeError: ", False, False),
        (SystemExit(3), "SystemExit: 3", False, False),
        (WriteError(errno.ENOSPC, "disk full"), "disk full", True, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_becomes_one_line_and_a_verdict(
    error: BaseException, message: str, is_final: bool, stops_run: bool, begun: FeatureSet
) -> None:
    (outcome,) = outcomes(Breaks(4, "", error=error), begun)
    assert outcome.staged is None
    assert (outcome.error, outcome.is_final, outcome.stops_run) == (message, is_final, stops_run)
    assert "Traceback" in outcome.trace


def test_an_interrupt_is_not_an_outcome(begun: FeatureSet) -> None:
    with pytest.raises(KeyboardInterrupt):
        outcomes(Breaks(4, "", error=KeyboardInterrupt()), begun)


def test_a_setup_that_fails_permanently_stops_the_run(begun: FeatureSet) -> None:
    stage = Breaks(4, "", error=ValueError("no weights"), breaks_setup=True)
    assert [outcome.stops_run for outcome in outcomes(stage, begun)] == [True]


def test_a_setup_that_fails_three_times_stops_the_run(begun: FeatureSet) -> None:
    stage = Breaks(4, "", error=RuntimeError("no GPU"), breaks_setup=True)
    assert [outcome.stops_run for outcome in outcomes(stage, begun, 3)] == [False, False, True]


def test_the_pace_is_that_of_the_shard_at_work(begun: FeatureSet, tmp_path: Path) -> None:
    seen: list[Pace | None] = []

    @dataclass(frozen=True)
    class Looks(Squares):
        def compute(self, state: int, shard: Shard, tick: Tick) -> ShardOutput:
            seen.append(worker.pace())
            output = super().compute(state, shard, tick)
            seen.append(worker.pace())
            return output

    worker = Worker(SetWork(Looks(4, str(tmp_path)), begun.shard_set), lane=3, n_threads=1)
    shard = begun.shard_set.shards[0]
    worker.run(shard)
    assert [*seen, worker.pace()] == [Pace(3, shard, 0), Pace(3, shard, 4, n_ticks=1), None]
