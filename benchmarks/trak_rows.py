"""TRAK over images: gradients of a network's last layer, unprojected, into its memory map.

`python -m benchmarks.trak_rows FOLDER N_ROWS OUT --counted FILE`. Given again it skips the rows
that its map says are there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trak import TRAKer
from trak.gradient_computers import FunctionalGradientComputer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector

from benchmarks.images import Made
from benchmarks.paper_way import M

BATCH_ROWS = 128


class Loss(AbstractModelOutput):
    """The mean squared error to ``M``."""

    def __init__(self) -> None:
        pass

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, pixels: Tensor) -> Tensor:
        """Of one image."""
        logits = torch.func.functional_call(model, (weights, buffers), pixels[None])
        return ((logits - M) ** 2).mean()

    def get_out_to_loss_grad(self, *given: Any) -> Tensor:
        """Not used by us."""
        return torch.ones(len(given[-1][0]), 1)


def main() -> None:
    """Featurize all rows, or those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counted", type=Path, required=True)
    asked = parser.parse_args()

    class Counting(FunctionalGradientComputer):
        """Notes when it computed how many rows."""

        def compute_per_sample_grad(self, batch: Any) -> Any:
            with asked.counted.open("a") as file:
                file.write(f"{time.time()} {len(batch[0])}\n")
            return super().compute_per_sample_grad(batch)

    made = Made(asked.folder, asked.n_rows)
    network = made.network()
    traker = TRAKer(
        network,
        Loss(),
        asked.n_rows,
        save_dir=str(asked.out),
        device="cpu",
        gradient_computer=Counting,
        projector=NoOpProjector(device="cpu"),
        use_half_precision=False,
        grad_wrt=["linear.weight"],
        logging_level=50,
    )
    traker.load_checkpoint(network.state_dict(), model_id=0)
    for start in range(0, asked.n_rows, BATCH_ROWS):
        pixels = made.pixels(start, min(start + BATCH_ROWS, asked.n_rows))
        traker.featurize((pixels,), num_samples=len(pixels))


if __name__ == "__main__":
    main()
