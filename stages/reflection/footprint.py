"""Memory of a worker of the extract stage, and the batch size that it allows."""

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
from stages.sensing.probe import noise_images
from store.schema import Schema

CUDA_BYTES = 2**31
"""Additional host memory of a process that uses CUDA."""

COLUMN_BYTES = 150
"""Memory of a value in a sample column while it is read, assembled and encoded."""

SPARE = 1.5
"""Factor on the activations that torch keeps alive, for the work space of kernels."""

CACHE_BYTES = 14 * 2**20
"""Best size of the activations per CPU core, measured by `benchmarks/batch_size.py`."""

LEAST_ROWS, MOST_ROWS = 8, 64
"""Limits of the batch size on a CPU: smaller ones read weights too often, larger gain nothing."""

GPU_ROWS, GPU_PIXELS = 1024, 2**23
"""Limits of a batch on a GPU: 1,024 small images, 128 of 224x224 pixels.

Each layer is launched once per batch, so batches should be large. But the GPU waits for the first
batch, which at most four threads decode, and a set of few large batches keeps few threads busy.
"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory in bytes that a worker needs.

    Attributes:
        fixed: memory that is independent of the batch size.
        shard: the part of ``fixed`` for the rows of a shard.
        image: memory per image in a batch.
        best_rows: batch size that suits the network.
    """

    fixed: int
    shard: int
    image: int
    best_rows: int

    def n_images(self, memory: int) -> int:
        """Number of images that fit into ``memory`` bytes at once."""
        return max(0, memory - self.fixed) // self.image

    def batch_rows(self, memory: int, asked: int | None, group_rows: int = 1) -> int:
        """The requested or best number of groups of images, halved until it fits; 0 if none does.

        The result is a number of images, and at least one group is requested.
        """
        n_groups = max(1, (asked or self.best_rows) // group_rows)
        while n_groups * group_rows > self.n_images(memory):
            n_groups //= 2
        return n_groups * group_rows

    def refusal(self, what: str, memory: int, group_rows: int = 1) -> str:
        """Error message if not even one group of images fits."""
        images = "one image" if group_rows == 1 else f"{group_rows:,} images"
        return (
            f"{what}: a worker needs {gib(self.fixed + group_rows * self.image)} with {images} at "
            "a time, "
            f"{gib(self.shard)} of it for the rows of a shard, and may use {gib(memory)}: use "
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
    """Memory of a worker, measured by sending one image through an untrained network.

    If images are perturbed, a backward pass is measured too, for which all activations are kept.
    """
    height, width = source.image_size
    weights, activations = _of_network(card, (height, width), layer, is_perturbed=is_perturbed)
    is_on_cpu = device == "cpu"
    # The vectors and their encoded bytes.
    shard = chunk_rows * sum(2 * spec.row_bytes for spec in schema.arrays)
    shard += chunk_rows * len(schema.columns) * COLUMN_BYTES
    process = PROCESS_BYTES if is_on_cpu else PROCESS_BYTES + CUDA_BYTES
    # One batch is computed, one is read (ahead, on a GPU), and one is being converted.
    image = 3 * height * width * 3 + (int(SPARE * activations) if is_on_cpu else 0)
    best_rows = _best_rows(activations, precision) if is_on_cpu else _gpu_rows(height * width)
    return Footprint(process + source.held_bytes + 3 * weights + shard, shard, image, best_rows)


def _best_rows(activations: int, precision: Precision) -> int:
    """The power of two whose activations are closest to the best size for a core.

    It is computed rather than timed: timings differ between runs, and the last bits of the rows
    depend on the batch size.

    >>> _best_rows(340_000, "fp32"), _best_rows(340_000, "bf16")
    (32, 64)
    """
    n_bytes = activations if precision == "fp32" else activations / 2
    rows = 2 ** round(math.log2(CACHE_BYTES / n_bytes))
    return int(min(max(rows, LEAST_ROWS), MOST_ROWS))


def _gpu_rows(n_pixels: int) -> int:
    """The largest power of two within the limits for images of ``n_pixels``; at least 1.

    >>> _gpu_rows(32 * 32), _gpu_rows(224 * 224)
    (1024, 128)
    """
    return int(min(GPU_ROWS, 2 ** int(math.log2(max(1, GPU_PIXELS // n_pixels)))))


def _of_network(
    card: ModelCard, size: tuple[int, int], layer: NamedLayer | None, *, is_perturbed: bool
) -> tuple[int, int]:
    """Size of the weights, and peak size of the live tensors while one image is processed."""
    network = build_network(card.network, card.n_classes).eval()
    weights = sum(value.nbytes for value in network.state_dict().values())
    image = noise_images(size, 1)
    with _Alive() as alive, torch.no_grad():
        pixels = normalised(image, torch.zeros(3), torch.ones(3))
        try:
            network(pixels)
        except RuntimeError:  # some networks need contiguous memory
            pixels = pixels.contiguous()
            network(pixels)
        if is_perturbed:
            _forward_and_backward(network.requires_grad_(False), pixels)
        if layer is not None:
            layer.of(network, pixels, card.M)
    return weights, alive.peak


def _forward_and_backward(network: nn.Module, pixels: Tensor) -> None:
    with torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_(True)
        found = network(leaf)
        logits: Tensor = found[-1] if isinstance(found, tuple) else found
        torch.autograd.grad(logits.sum(), leaf)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as below
    """Tracks the memory of all tensors created while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return ``False``; otherwise torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],  # Any: torch's own types
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
