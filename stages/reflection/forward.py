"""The forward pass of a worker, which handles lack of memory and images that cannot be computed."""

from __future__ import annotations

import copy
import traceback
from collections import deque
from collections.abc import Mapping
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

_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""Parts of the messages of a ``RuntimeError`` if memory ran out."""


@dataclass
class Forward:
    """A network with its weights, an optional layer whose gradients are stored, and a batch size.

    ``batch_rows`` is reduced if memory runs out. ``perturbations`` are applied to images one after
    the other before the forward pass.
    """

    sensing: Sensing
    weights: str
    layer: NamedLayer | None
    batch_rows: int
    perturbations: tuple[Perturbation, ...] = ()

    def twin(self) -> Forward:
        """A copy for another thread that shares the weights, and nothing else."""
        weights = [*self.sensing.parameters(), *self.sensing.buffers()]
        return replace(self, sensing=copy.deepcopy(self.sensing, {id(w): w for w in weights}))

    def fill(self, out: Arrays, images: NDArray[np.uint8]) -> dict[int, Exception]:
        """Write the vectors of images into the rows of ``out``: arrays of the same length, by name.

        If a batch does not fit into memory, the batch size is halved permanently. A batch that
        fails for another reason is bisected.

        Returns:
            Row -> error, for rows that fail on their own. If every row of several fails, the images
            are not the cause, and the first error is raised.
        """
        failed: dict[int, Exception] = {}
        first: Exception | None = None
        todo = deque([(0, len(images))])
        while todo:
            start, stop = todo.popleft()
            n = min(stop - start, self.batch_rows)
            if start + n < stop:
                todo.appendleft((start + n, stop))
            try:
                into = {name: values[start : start + n] for name, values in out.items()}
                self.compute(into, images[start : start + n])
            except Exception as error:  # a network may raise anything for an image
                traceback.clear_frames(error.__traceback__)  # their variables hold the batch
                if is_out_of_memory(error):
                    if n == 1:
                        raise
                    torch.cuda.empty_cache()
                    self.batch_rows = (n + 1) // 2
                elif n == 1:
                    failed[start] = error
                    continue
                first = first or error
                half = start + (n + 1) // 2
                todo.extendleft([(half, start + n), (start, half)])
                continue
        if len(failed) == len(images) > 1 and first is not None:
            raise first
        return failed

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether GPU or host memory ran out.

    torch has an exception type only for its own allocator on a GPU. If the host, CUDA's libraries
    or the driver run out of memory, only the message says so.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )
