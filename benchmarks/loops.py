"""Loops over images that are no pipeline, as commands: the one people write, and a tuned one.

`python -m benchmarks.loops plain FOLDER N_ROWS OUT` has a torchvision data set, a DataLoader with
ToTensor and Normalize, batches of 128, eval and no_grad, and saves features and logits at the end.
`... tuned-fp32` and `tuned-bf16` store nothing and check nothing. They take the fastest of several
ways and batch sizes on this machine, tried before the clock starts. Both print JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.images import Made
from pipeline.memory import keep_freed_memory
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD
from stages.sensing.folding import folded
from stages.sensing.torchvision_ops import import_torchvision

PLAIN_BATCH, N_LOADERS = 128, 2
BATCHES = (32, 64, 128, 256)
GPU_BATCHES = (512, 2048, 8192)
TRIAL_S = 0.4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Forward = Callable[[Tensor], Tensor]
"""uint8 images ``[n, 32, 32, 3]`` of the machine's memory to logits."""


def plain(made: Made, out: Path) -> dict[str, Any]:
    """The usual loop."""
    import_torchvision()
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import VisionDataset

    class Images(VisionDataset):
        """Reads items as torchvision's CIFAR10 does."""

        def __init__(self) -> None:
            steps = [transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)]
            super().__init__(str(made.dataset), transform=transforms.Compose(steps))
            self.data = np.load(made.images)[: made.n_rows]
            self.targets = np.load(made.dataset / "labels.npy")

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.transform(Image.fromarray(self.data[index])), int(self.targets[index])

    network, inputs = made.network().to(DEVICE), list[Tensor]()
    network.linear.register_forward_pre_hook(lambda _, given: inputs.append(given[0].cpu()))
    began = time.perf_counter()
    logits = []
    with torch.no_grad():
        for images, _ in DataLoader(Images(), batch_size=PLAIN_BATCH, num_workers=N_LOADERS):
            logits.append(network(images.to(DEVICE)).cpu())
    found = {"features": torch.cat(inputs).numpy(), "logits": torch.cat(logits).numpy()}
    np.savez(out, **found)
    seconds = time.perf_counter() - began
    return {"at work": made.n_rows / seconds, "logits": found["logits"][:64].tolist()}


def tuned(made: Made, dtype: torch.dtype) -> dict[str, Any]:
    """The fastest forward pass over all images that we know how to write."""
    keep_freed_memory()
    data = np.load(made.images, mmap_mode="r")
    trials = [
        (_rate(forward, data, n), name, n, forward)
        for name, forward in _ways(made, dtype)
        for n in (BATCHES if DEVICE == "cpu" else GPU_BATCHES)
    ]
    _, name, batch_rows, forward = max(trials, key=lambda trial: trial[0])
    logits = np.empty((made.n_rows, 10), np.float32)
    began = time.perf_counter()
    for start in range(0, made.n_rows, batch_rows):
        stop = min(start + batch_rows, made.n_rows)
        logits[start:stop] = forward(torch.from_numpy(data[start:stop].copy())).cpu().numpy()
    seconds = time.perf_counter() - began
    way = f"{name}, batch {batch_rows}"
    return {"at work": made.n_rows / seconds, "way": way, "logits": logits[:64].tolist()}


def _ways(made: Made, dtype: torch.dtype) -> Iterator[tuple[str, Forward]]:
    """Forward passes: batch norm folded and channels-last, plain, and frozen by the JIT."""
    network = folded(made.network()).to(DEVICE, dtype, memory_format=torch.channels_last)
    yield "channels-last", _from_uint8(network, dtype)
    example = torch.zeros(64, 3, 32, 32, dtype=dtype, device=DEVICE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the JIT is on its way out; it is still the faster one
        traced = torch.jit.trace(network, example.to(memory_format=torch.channels_last))
        yield (
            "frozen by the JIT",
            _from_uint8(torch.jit.optimize_for_inference(torch.jit.freeze(traced)), dtype),
        )


def _from_uint8(network: nn.Module, dtype: torch.dtype) -> Forward:
    mean = 255 * torch.tensor(CIFAR10_MEAN, device=DEVICE)
    scale = 1 / (255 * torch.tensor(CIFAR10_STD, device=DEVICE))

    @torch.inference_mode()
    def forward(images: Tensor) -> Tensor:
        pixels = images.to(DEVICE, torch.float32).sub_(mean).mul_(scale).permute(0, 3, 1, 2)
        logits: Tensor = network(pixels.to(dtype)).float()
        return logits

    return forward


def _rate(forward: Forward, data: NDArray[np.uint8], n: int) -> float:
    """Images a second, the first batches left out."""
    images = torch.from_numpy(data[:n].copy())
    for _ in range(3):
        forward(images).cpu()
    began, n_batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < TRIAL_S:
        forward(images).cpu()
        n_batches += 1
    return n_batches * len(images) / seconds


def main() -> None:
    """Run one of the loops."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=["plain", "tuned-fp32", "tuned-bf16"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    made = Made(asked.folder, asked.n_rows)
    if asked.loop == "plain":
        found = plain(made, asked.out)
    else:
        dtype = torch.float32 if asked.loop == "tuned-fp32" else torch.bfloat16
        found = tuned(made, dtype)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
