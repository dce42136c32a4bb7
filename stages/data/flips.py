"""Labels that are flipped on purpose, to measure how well wrong labels are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError

SYMMETRIC, PAIRWISE = "symmetric", "pairwise"
EXPECTED = "symmetric:SHARE or pairwise:SHARE, and :SEED, such as pairwise:0.2 or symmetric:0.05:1"


@dataclass(frozen=True, slots=True)
class Flips:
    """Which labels are flipped, and to what.

    Attributes:
        kind: "symmetric" flips to any other class with the same probability, "pairwise" to the
            next class, and the last to the first.
        share: share of the rows whose label is flipped, between 0 and 1.
        seed: seed of the rows and of the classes.
    """

    kind: str
    share: float
    seed: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse ``KIND:SHARE`` or ``KIND:SHARE:SEED``.

        Raises:
            InputError: the text has another form.

        >>> str(Flips.of("pairwise:.2"))
        'pairwise:0.2:0'
        """
        kind, _, rest = text.partition(":")
        share, _, seed = rest.partition(":")
        try:
            found = cls(kind, float(share), int(seed or 0))
        except ValueError:
            raise InputError(f"flipped labels {text!r}: expected {EXPECTED}") from None
        if kind not in (SYMMETRIC, PAIRWISE) or not 0 < found.share < 1 or found.seed < 0:
            raise InputError(f"flipped labels {text!r}: expected {EXPECTED}")
        return found

    def __str__(self) -> str:
        return f"{self.kind}:{self.share:g}:{self.seed}"

    def flipped(self, labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
        """The labels with flips, ``[n]``; rows without a label (-1) stay without.

        The rows are drawn from all ``n``, so that they do not depend on which have a label.

        Raises:
            InputError: there are fewer than two classes, or no label is flipped.
        """
        self.check(n_classes)
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(labels))[: round(self.share * len(labels))]
        moves = rng.integers(1, n_classes, len(rows)) if self.kind == SYMMETRIC else 1
        found = labels.copy()
        found[rows] = (found[rows] + moves) % n_classes
        found = np.where(labels < 0, labels, found)
        if (found == labels).all():
            n_labels = int((labels >= 0).sum())
            raise InputError(
                f"flipped labels {self}: expected to flip one label or more, found none of "
                f"{n_labels:,} flipped; use a larger share"
            )
        return found

    def check(self, n_classes: int) -> None:
        """Raise ``InputError`` if there is no other class to flip a label to."""
        if n_classes < 2:
            raise InputError(f"flipped labels: expected two or more classes, found {n_classes}")
