"""A tiny source of two classes that any network can tell apart."""

import dataclasses

import numpy as np

from stages.data.source import Rows


@dataclasses.dataclass(frozen=True)
class Stripes:
    """Images of two classes, dark and bright, with noise; opens itself."""

    n_rows: int = 60
    seed: int = 0
    side: int = 16
    family: str = "stripes"
    broken: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()
    name = "stripes"
    split = "train"
    class_names = ("dark", "bright")
    n_classes = 2
    resize = "none"
    left_out = ()
    how_to_label = ""
    corruption = None
    extra_columns = ()

    @property
    def image_size(self):
        return (self.side, self.side)

    def open(self):
        return self

    def fingerprint(self):
        return f"{self.seed}"

    def read(self, start, stop):
        generator = np.random.default_rng(self.seed)
        labels = generator.integers(0, 2, self.n_rows)
        noise = generator.integers(0, 100, (self.n_rows, self.side, self.side, 3))
        images = (noise + 120 * labels[:, None, None, None]).astype(np.uint8)
        labels[list(self.unlabelled)] = -1
        failed = {row - start: "torn" for row in self.broken if start <= row < stop}
        return Rows(images[start:stop], {"label": labels[start:stop]}, failed)
