"""The batches of a shard on their way: read, and through the network, several at once.

On a CPU every core has a copy of the network and a batch of its own. Cores that share a batch wait
for each other after every layer, and for long where one of them reads, or serves another program.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from stages.data.source import ImageSource, Rows, read_each
from stages.reflection.forward import Arrays, Forward
from store.shards import Shard

N_ON_GPU = 2
"""Networks on a GPU: while the vectors of one come back, the kernels of the other are queued."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a shard from offset ``at`` on, and the errors of those that the network cannot take.

    ``read_s`` are the seconds that it took to read them.
    """

    at: int
    rows: Rows
    errors: dict[int, Exception]
    read_s: float


@dataclass(frozen=True)
class Flow:
    """A worker's own: the opened source, and copies of its network that share their weights.

    Attributes:
        batch_rows: images of a batch.
        n_readers: threads that read a batch and send it through a network that is free.
        n_threads: of the worker; the networks share them.
    """

    source: ImageSource
    networks: tuple[Forward, ...]
    batch_rows: int
    n_readers: int
    n_threads: int
    _free: SimpleQueue[Forward] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        for network in self.networks:
            self._free.put(network)

    @property
    def rows_at_once(self) -> int:
        """Images at once in a network: less than a batch where memory ran out."""
        return min(network.batch_rows for network in self.networks)

    def through(self, shard: Shard, arrays: Arrays) -> Iterator[Batch]:
        """The batches of a shard in order, each when its vectors stand in the ``arrays``."""

        def work(at: int) -> Batch:
            began = time.perf_counter()
            start = shard.start + at
            rows = read_each(self.source, start, min(start + self.batch_rows, shard.stop))
            read_s = time.perf_counter() - began
            out = {name: values[at : at + len(rows.images)] for name, values in arrays.items()}
            network = self._free.get()
            try:
                return Batch(at, rows, network.fill(out, rows.images), read_s)
            finally:
                self._free.put(network)

        starts = deque(range(0, shard.n_rows, self.batch_rows))
        ahead: deque[Future[Batch]] = deque()
        with _threads(self.n_readers, self.n_threads, len(self.networks)) as pool:
            while starts or ahead:
                # Those that are through may wait for an earlier one without holding others up.
                while starts and len(ahead) < self.n_readers + len(self.networks):
                    ahead.append(pool.submit(work, starts.popleft()))
                yield ahead.popleft().result()


def flow_of(source: ImageSource, forward: Forward, n_threads: int, n_images: int) -> Flow:
    """The flow of a worker with these threads, and with memory for so many images at once."""
    batch_rows = forward.batch_rows
    n_at_once = max(1, min(n_threads, n_images // batch_rows))
    is_on_gpu = forward.sensing.mean.device.type != "cpu"
    n_networks = N_ON_GPU if is_on_gpu else n_at_once
    if forward.layer is not None:
        n_networks = 1  # its gradients take another network, and more memory
    networks = (forward, *(forward.twin() for _ in range(n_networks - 1)))
    # A core that only reads ahead stands in the way of those that compute: a sixth slower.
    n_readers = max(n_networks, n_at_once) + is_on_gpu
    return Flow(source, networks, batch_rows, n_readers, n_threads)


@contextmanager
def _threads(n_readers: int, n_threads: int, n_networks: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose layers run on an even share of the cores."""
    share = max(1, n_threads // n_networks)
    pool = ThreadPoolExecutor(n_readers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # each thread has its own number, new ones the last set
