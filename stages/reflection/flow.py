"""The flow of a shard's batches: read, and sent through the network, several at a time.

On a CPU every core has its own copy of the network and its own batch. Cores that shared a batch
would wait for each other after every layer, and for long if one of them reads or serves another
program.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Self

import torch
from torch import Tensor

from stages.data.source import ImageSource, Rows
from stages.reflection.forward import Arrays, Forward
from stages.reflection.reading_ahead import N_AHEAD, fetching, is_slow
from stages.sensing.device import full_float32
from stages.sensing.model import check_twin
from store.shards import Shard

N_ON_GPU = 2
"""Networks per GPU: while results of one are copied back, kernels of the other are queued."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a shard from offset ``at``, and the errors of rows that the network cannot compute.

    ``read_s`` is the time in seconds that reading them, or waiting for them, took.
    """

    at: int
    rows: Rows
    errors: dict[int, Exception]
    read_s: float


@dataclass(frozen=True)
class Flow:
    """The opened source of a worker, and copies of its network that share their weights.

    Attributes:
        source: the images.
        networks: the copies of the network.
        batch_rows: images per batch.
        n_readers: threads, each of which reads a batch and sends it through a free network.
        n_threads: number of threads of the worker, which the networks share.
        n_ahead: further batches that are read meanwhile, by threads that mostly wait for storage.
    """

    source: ImageSource
    networks: tuple[Forward, ...]
    batch_rows: int
    n_readers: int
    n_threads: int
    n_ahead: int = 0
    _free: SimpleQueue[Forward] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        for network in self.networks:
            self._free.put(network)

    @property
    def rows_at_once(self) -> int:
        """Images per forward pass: fewer than in a batch if memory ran out."""
        return min(network.batch_rows for network in self.networks)

    def checked(self, images: Tensor) -> Self:
        """Compare the networks on one group of ``images [n, H, W, 3]``; return the flow itself."""
        first, *others = self.networks
        for other in others:
            check_twin(first.sensing, other.sensing, images[: first.group_rows])
        return self

    def through(self, shard: Shard, arrays: Arrays) -> Iterator[Batch]:
        """Yield the batches of a shard in order, each once its vectors are in ``arrays``."""

        def work(at: int, fetched: Callable[[], Rows]) -> Batch:
            began = time.perf_counter()
            rows = fetched()
            read_s = time.perf_counter() - began
            out = {name: values[at : at + len(rows.images)] for name, values in arrays.items()}
            network = self._free.get()
            try:
                return Batch(at, rows, network.fill(out, rows.images, rows.failed), read_s)
            finally:
                self._free.put(network)

        starts = deque(range(0, shard.n_rows, self.batch_rows))
        ahead: deque[Future[Batch]] = deque()
        # Finished batches may wait for an earlier one without delaying others.
        n_at_once = self.n_readers + len(self.networks) + self.n_ahead
        with (
            full_float32(),
            fetching(self.source, ahead=self.n_ahead > 0) as fetch,
            _threads(self.n_readers, self.n_threads, len(self.networks)) as pool,
        ):
            while starts or ahead:
                while starts and len(ahead) < n_at_once:
                    start = shard.start + (at := starts.popleft())
                    rows = fetch(start, min(start + self.batch_rows, shard.stop))
                    ahead.append(pool.submit(work, at, rows))
                yield ahead.popleft().result()


def flow_of(source: ImageSource, forward: Forward, n_threads: int, n_images: int) -> Flow:
    """The flow of a worker with ``n_threads`` threads and memory for ``n_images`` images."""
    batch_rows = forward.batch_rows
    n_at_once = max(1, min(n_threads, n_images // batch_rows))
    is_on_gpu = forward.sensing.mean.device.type != "cpu"
    n_networks = N_ON_GPU if is_on_gpu else n_at_once
    if forward.layer is not None:
        n_networks = 1  # its gradients need another network, and more memory
    networks = (forward, *(forward.twin() for _ in range(n_networks - 1)))
    # A thread that only reads ahead slows down those that compute by a sixth.
    n_readers = max(n_networks, n_at_once) + is_on_gpu
    n_ahead = N_AHEAD if is_slow(source) else 0
    return Flow(source, networks, batch_rows, n_readers, n_threads, n_ahead)


@contextmanager
def _threads(n_readers: int, n_threads: int, n_networks: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool in which PyTorch uses an even share of the cores per thread."""
    share = max(1, n_threads // n_networks)
    pool = ThreadPoolExecutor(n_readers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # the setting is per thread; new threads use the last one
