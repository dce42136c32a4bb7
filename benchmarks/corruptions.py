"""Measure how many images per second one core corrupts at 224x224 pixels, by corruption.

Run it from the repository: `python -m benchmarks.corruptions`. The images are photographs of
scikit-image. Each severity is timed once, in processor time, after a first run that fills the
caches.
"""

from __future__ import annotations

import time

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from cli.output import table
from stages.data.corruptions.levels import IMAGENETC
from stages.data.corruptions.severities import corrupt
from stages.data.resize import Resize

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "brick", "grass", "gravel")
N_IMAGES = 24


def main() -> None:
    """Print a table."""
    resizing = Resize((224, 224), 256)
    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    few = np.stack([resizing.pixels(photograph) for photograph in photographs])
    images = np.tile(few, (N_IMAGES // len(few), 1, 1, 1))
    seconds = {name: [_seconds(images, name, level) for level in range(1, 6)] for name in IMAGENETC}
    print(table([_row(name, each) for name, each in seconds.items()]))
    mean = np.mean(list(seconds.values()))
    print(f"\nall 95: {1 / mean:,.0f} images/s, {95 * mean:.2f} s for all of one image")


def _row(name: str, seconds: list[float]) -> dict[str, object]:
    """Images per second: over all severities, and of each."""
    each = {f"severity {level}": round(1 / s) for level, s in enumerate(seconds, start=1)}
    return {"corruption": name, "all": round(1 / np.mean(seconds)), **each}


def _seconds(images: NDArray[np.uint8], name: str, severity: int) -> float:
    """Processor time per image."""
    rows = np.arange(len(images))
    corrupt(images[:2], name, severity, rows[:2], 0, collection="imagenetc")
    began = time.process_time()
    corrupt(images, name, severity, rows, 0, collection="imagenetc")
    return (time.process_time() - began) / len(images)


if __name__ == "__main__":
    main()
