"""Read images ahead in many threads, a few rows in each, where reading waits for storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from stages.data.source import ImageSource, Rows, joined, read_each

Fetch = Callable[[int, int], Callable[[], Rows]]
"""Takes a range of rows and returns a function that returns these rows, now or when called."""

SLOW_S = 0.005
"""Waiting time per image from which storage counts as slow; that of a local disk is shorter."""

N_AHEAD = 4
"""Batches that are read while others are computed, if storage is slow."""

_N_THREADS, _ROWS_PER_TASK, _N_TRIED = 64, 4, 3


def is_slow(source: ImageSource) -> bool:
    """Whether reading waits for storage rather than computes; reads a few rows to find out."""
    rows = {source.n_rows * at // _N_TRIED for at in range(_N_TRIED)}
    return bool(source.n_rows) and all(_waited_s(source, row) >= SLOW_S for row in rows)


def _waited_s(source: ImageSource, row: int) -> float:
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        source.read(row, row + 1)
    except Exception:  # a row that cannot be read is reported when its turn comes
        return 0.0
    return time.perf_counter() - wall - (time.thread_time() - cpu)


@contextmanager
def fetching(source: ImageSource, *, ahead: bool) -> Iterator[Fetch]:
    """Yield a function that fetches rows: at once in other threads if ``ahead``, else when used."""
    if not ahead:
        yield lambda start, stop: partial(read_each, source, start, stop)
        return
    pool = ThreadPoolExecutor(_N_THREADS)

    def fetch(start: int, stop: int) -> Callable[[], Rows]:
        starts = range(start, stop, _ROWS_PER_TASK)
        stops = (min(at + _ROWS_PER_TASK, stop) for at in starts)
        parts = pool.map(source.read, starts, stops)

        def fetched() -> Rows:
            try:
                return joined(list(parts))
            except MemoryError:
                raise
            except Exception:  # find out which rows are bad
                return read_each(source, start, stop)

        return fetched

    try:
        yield fetch
    finally:
        pool.shutdown(cancel_futures=True)
