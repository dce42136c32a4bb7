"""Ray Data as the engine: read rows, `map_batches` with a network, `write_parquet`.

`python -m benchmarks.ray_data FOLDER N_ROWS OUT --counted FILE`. The actor reads its rows from the
mapped array and has the same network as ours, merged and channels-last, so that the engines are
compared. With `--checkpoint` a run that was killed goes on, as far as Ray Data can.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import Made
from benchmarks.loops import DEVICE

BATCH_ROWS = 2048 if DEVICE == "cuda" else 128
N_BLOCKS = 10


class Forward:
    """The network in an actor; appends the time and number of computed rows to ``counted``."""

    def __init__(self, made: Made, counted: Path) -> None:
        import torch

        from stages.sensing.model import load_sensing

        torch.set_num_threads(os.cpu_count() or 1)
        self.sensing = load_sensing(made.card(), made.weights, DEVICE)
        self.images = np.load(made.images, mmap_mode="r")
        self.counted = counted

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Features and logits of some rows."""
        import torch

        began = time.time()
        features, logits = self.sensing(torch.from_numpy(self.images[batch["id"]]).to(DEVICE))
        found = {"features": features.cpu().numpy(), "logits": logits.cpu().numpy()}
        with self.counted.open("a") as file:
            file.write(f"{began} {len(features)}\n")
        return {"id": batch["id"], **found}


def main() -> None:
    """Run the pipeline to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counted", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback
    import ray
    from ray.data.checkpoint import CheckpointConfig

    n_cpus = (os.cpu_count() or 1) + 2  # on paper: actors that keep checkpoints hold one each
    ray.init(
        "local",
        num_cpus=n_cpus,
        logging_level="ERROR",
        log_to_driver=False,
        include_dashboard=False,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if asked.checkpoint is not None:
        context.checkpoint_config = CheckpointConfig(
            id_column="id",
            checkpoint_path=str(asked.checkpoint),
            delete_checkpoint_on_success=False,
        )
    ray.data.range(asked.n_rows, override_num_blocks=N_BLOCKS).map_batches(
        Forward,
        fn_constructor_args=(Made(asked.folder, asked.n_rows), asked.counted),
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        num_gpus=int(DEVICE == "cuda"),
    ).write_parquet(str(asked.out))


if __name__ == "__main__":
    main()
