"""What a worker of the extract stage takes in memory, and how many images at once that allows."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_

from pipeline.memory import PROCESS_BYTES, gib
from stages.data.source import ImageSource
from stages.reflection.named_layer import NamedLayer
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard, Precision
from stages.sensing.model import normalised
from store.schema import Schema

CUDA_BYTES = 2**31
"""What CUDA adds to that in the machine's own memory."""

COLUMN_BYTES = 150
"""Of one value in a sample column while it is read, put together and encoded."""

SPARE = 1.5
"""Activations that are alive by torch's book-keeping, times this: kernels have work space."""

CACHE_BYTES = 14 * 2**20
"""Of activations that a core of a CPU is best given at once, by `benchmarks/batch_size.py`."""

LEAST_ROWS, MOST_ROWS = 8, 64
"""Of a batch on a CPU: smaller ones read the weights too often, larger ones gain nothing."""

GPU_ROWS = 1024
"""Of a batch on a GPU: each layer is started once for all of them."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a worker takes: ``fixed`` whatever the batch, ``shard`` of it for the rows.

    ``best_rows`` is the batch size that suits the network.
    """

    fixed: int
    shard: int
    image: int
    best_rows: int

    def n_images(self, memory: int) -> int:
        """How many images that much memory holds at once."""
        return max(0, memory - self.fixed) // self.image

    def batch_rows(self, memory: int, asked: int | None) -> int:
        """The batch size that fits: the one asked for or the best, halved until it does, or 0."""
        rows = asked or self.best_rows
        while rows > self.n_images(memory):
            rows //= 2
        return rows

    def refusal(self, what: str, memory: int) -> str:
        """What to say where not even one image fits."""
        return (
            f"{what}: a worker takes {gib(self.fixed + self.image)} with one image at a time, "
            f"{gib(self.shard)} of it for the rows of a shard, and may take {gib(memory)}: give "
            "smaller shards (--shard-rows), more memory (--memory) or fewer workers (--workers)"
        )


def footprint(
    source: ImageSource,
    card: ModelCard,
    schema: Schema,
    chunk_rows: int,
    *,
    precision: Precision,
    layer: NamedLayer | None,
    is_perturbed: bool = False,
    device: str,
) -> Footprint:
    """What a worker takes, found out by sending one image through an untrained network.

    Where images are perturbed it is sent back as well: all activations live until then.
    """
    height, width = source.image_size
    weights, activations = _of_network(card, (height, width), layer, is_perturbed=is_perturbed)
    is_on_cpu = device == "cpu"
    # The vectors, and their encoded bytes.
    shard = chunk_rows * sum(2 * spec.row_bytes for spec in schema.arrays)
    shard += chunk_rows * len(schema.columns) * COLUMN_BYTES
    process = PROCESS_BYTES if is_on_cpu else PROCESS_BYTES + CUDA_BYTES
    # A batch is at work, one is read (ahead, on a GPU), one on its way from one form to another.
    image = 3 * height * width * 3 + (int(SPARE * activations) if is_on_cpu else 0)
    best_rows = _best_rows(activations, precision) if is_on_cpu else GPU_ROWS
    return Footprint(process + source.held_bytes + 3 * weights + shard, shard, image, best_rows)


def _best_rows(activations: int, precision: Precision) -> int:
    """The power of two whose activations are nearest to what a core is best given.

    Computed, not timed: clocks differ from run to run, and with the batch size the last bits of
    the rows would.

    >>> _best_rows(340_000, "fp32"), _best_rows(340_000, "bf16")
    (32, 64)
    """
    n_bytes = activations if precision == "fp32" else activations / 2
    rows = 2 ** round(math.log2(CACHE_BYTES / n_bytes))
    return int(min(max(rows, LEAST_ROWS), MOST_ROWS))


def _of_network(
    card: ModelCard, size: tuple[int, int], layer: NamedLayer | None, *, is_perturbed: bool
) -> tuple[int, int]:
    """Bytes of the weights, and of what is alive at most while one image goes through."""
    network = build_network(card.network, card.n_classes).eval()
    weights = sum(value.nbytes for value in network.state_dict().values())
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with _Alive() as alive, torch.no_grad():
        pixels = normalised(image, torch.zeros(3), torch.ones(3))
        network(pixels)
        if is_perturbed:
            _there_and_back(network.requires_grad_(False), pixels)
        if layer is not None:
            layer.of(network, pixels, card.M)
    return weights, alive.peak


def _there_and_back(network: nn.Module, pixels: Tensor) -> None:
    with torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_(True)
        found = network(leaf)
        logits: Tensor = found[-1] if isinstance(found, tuple) else found
        torch.autograd.grad(logits.sum(), leaf)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as below
    """Keeps book of the memory of all tensors that are made under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: whatever skips torch's compiler imports it first, which takes a second."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],  # Any: torch's own
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_(self._note, made)
        self.peak = max(self.peak, self._now)
        return made

    def _note(self, value: object) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, n_bytes: int) -> None:
        self._seen.discard(key)
        self._now -= n_bytes
