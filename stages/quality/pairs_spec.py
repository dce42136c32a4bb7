"""Where pairs of images are: a data set, a table, or references that are corrupted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stages.data.corruptions.cells import Cells
from stages.quality.opinion_sets import opinion_set
from stages.quality.pair_manifest import manifest_pairs
from stages.quality.pairs import Pairs, corrupted_pairs


@dataclass(frozen=True, slots=True)
class PairsSpec:
    """Where pairs are; workers open it again.

    Attributes:
        kind: a data set in a known layout, a manifest, or references that are corrupted.
        path: folder or file.
        cells: corruptions; only for references.
        limit: use only the first pairs.
    """

    kind: Literal["dataset", "manifest", "references"]
    path: str
    cells: Cells | None = None
    limit: int | None = None

    def open(self) -> Pairs:
        """List the pairs; no image is read.

        Raises:
            DataNotFoundError, InputError: they do not exist, or the list is invalid.
        """
        path = Path(self.path)
        if self.cells is not None:
            found = corrupted_pairs(path, self.cells)
        else:
            found = opinion_set(path) if self.kind == "dataset" else manifest_pairs(path)
        return found if self.limit is None else replace(found, pairs=found.pairs[: self.limit])
