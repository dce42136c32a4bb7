"""The forward pass of a worker, which handles lack of memory and images that cannot be computed."""

from __future__ import annotations

import copy
import traceback
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.reflection.named_layer import ARRAY, NamedLayer
from stages.reflection.perturbation import Move, Perturbation
from stages.sensing.build import build_network
from stages.sensing.map_layers import STATISTICS
from stages.sensing.model import Sensing, normalised
from stages.sensing.weights import load_weights

Arrays = Mapping[str, NDArray[Any]]
Rows = slice | NDArray[np.int64]

_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""Parts of the messages of a ``RuntimeError`` if memory ran out."""


@dataclass
class Forward:
    """A network with its weights, an optional layer whose gradients are stored, and a batch size.

    ``batch_rows`` is reduced if memory runs out. ``perturbations`` are applied to images one after
    the other before the forward pass. With batch statistics, batches consist of whole groups.
    """

    sensing: Sensing
    weights: str
    layer: NamedLayer | None
    batch_rows: int
    perturbations: tuple[Perturbation, ...] = ()

    @property
    def group_rows(self) -> int:
        """Number of consecutive images that share batch statistics; 1 without them."""
        return self.sensing.card.batch_statistics or 1

    def twin(self) -> Forward:
        """A copy for another thread that shares the weights, and nothing else."""
        weights = [*self.sensing.parameters(), *self.sensing.buffers()]
        return replace(self, sensing=copy.deepcopy(self.sensing, {id(w): w for w in weights}))

    def fill(
        self, out: Arrays, images: NDArray[np.uint8], unread: Collection[int] = ()
    ) -> dict[int, Exception]:
        """Write the vectors of images into the rows of ``out``: arrays of the same length, by name.

        If a batch does not fit into memory, the batch size is halved permanently. A batch that
        fails for another reason is bisected, but a group of images with the same batch statistics
        is not divided.

        Args:
            out: written in place.
            images: whole groups; the last one may be shorter.
            unread: rows of images that could not be read, which are in no batch statistics.

        Returns:
            Row -> error, for rows that fail on their own. If every row of several fails, the images
            are not the cause, and the first error is raised.
        """
        failed: dict[int, Exception] = {}
        group = self.group_rows
        first: Exception | None = None
        todo = deque([(0, len(images))])
        while todo:
            start, stop = todo.popleft()
            n = min(stop - start, self.batch_rows)
            if start + n < stop:
                todo.appendleft((start + n, stop))
            try:
                for rows in self._passes(start, start + n, unread):
                    into = {name: values[rows] for name, values in out.items()}
                    self.compute(into, images[rows])
                    if not isinstance(rows, slice):  # then `into` are copies
                        for name, values in into.items():
                            out[name][rows] = values
            except Exception as error:  # a network may raise anything for an image
                traceback.clear_frames(error.__traceback__)  # their variables hold the batch
                if is_out_of_memory(error):
                    if n <= group:
                        raise
                    torch.cuda.empty_cache()
                    self.batch_rows = _half(n, group)
                elif n <= group:
                    failed |= dict.fromkeys(range(start, start + n), error)
                    first = first or error
                    continue
                first = first or error
                half = start + _half(n, group)
                todo.extendleft([(half, start + n), (start, half)])
                continue
        if len(failed) == len(images) > 1 and first is not None:
            raise first
        return failed

    def _passes(self, start: int, stop: int, unread: Collection[int]) -> Iterator[Rows]:
        """The rows of each forward pass: all, or whole groups and each shorter one by itself."""
        if self.group_rows == 1 or not unread:
            yield slice(start, stop)
            return
        n_rows, whole = self.group_rows, list[int]()
        for first in range(start, stop, n_rows):
            group = [row for row in range(first, min(first + n_rows, stop)) if row not in unread]
            if len(group) == n_rows:
                whole += group
            elif group:
                yield np.array(group)
        if whole:
            yield np.array(whole)

    def compute(self, out: Arrays, images: NDArray[np.uint8]) -> None:
        """Write the vectors of images into ``out``, in one forward pass."""
        on_device = self.on_device(images)
        for move in self._moves:
            on_device = move(on_device)
        features, logits = self.sensing(on_device)
        found = {"features": features, "logits": logits}
        if self.sensing.map_taps:
            found[STATISTICS] = self.sensing.statistics()
        if self.layer is not None:
            found[ARRAY] = self._gradients(self.layer, on_device)
        for name, values in found.items():
            out[name][...] = values.cpu().numpy()

    def on_device(self, images: NDArray[np.uint8]) -> Tensor:
        """The images on the device of the network."""
        found = torch.from_numpy(images)
        if self.sensing.mean.is_cuda:
            found = found.pin_memory().to(self.sensing.mean.device, non_blocking=True)
        return found

    def _gradients(self, layer: NamedLayer, images: Tensor) -> Tensor:
        pixels = normalised(images, self.sensing.mean, self.sensing.scale)
        return layer.of(self._plain_network, pixels, self.sensing.card.M)

    @cached_property
    def _moves(self) -> list[Move]:
        return [each.of(self.sensing) for each in self.perturbations]

    @cached_property
    def _plain_network(self) -> nn.Module:
        """The network as defined; in ``sensing``, layers may have been merged for speed."""
        network = build_network(self.sensing.card.network, self.sensing.card.n_classes)
        load_weights(network, self.weights)
        return network.eval().to(self.sensing.mean.device)


def _half(n_rows: int, group_rows: int) -> int:
    """Half of the rows, rounded up to whole groups."""
    return -(-n_rows // (2 * group_rows)) * group_rows


def is_out_of_memory(error: Exception) -> bool:
    """Whether GPU or host memory ran out.

    torch has an exception type only for its own allocator on a GPU. If the host, CUDA's libraries
    or the driver run out of memory, only the message says so.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )
