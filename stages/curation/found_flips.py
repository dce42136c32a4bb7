"""How well a curation finds labels that were flipped on purpose."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.curation_result import FoundFlips
from stages.curation.curation_scores import RANKINGS
from stages.metrics.detection import auroc, curve_of


def found_flips(judged: pd.DataFrame) -> FoundFlips:
    """Compare the flags and scores of the judged rows with the truth, ``is_flipped``."""
    is_flipped = judged["is_flipped"].to_numpy(bool)
    flags = judged["is_label_issue"].to_numpy(bool)
    n_found, n_flags, n_flipped = (
        int(each.sum()) for each in (flags & is_flipped, flags, is_flipped)
    )
    return FoundFlips(
        flipped=n_flipped,
        precision=_share(n_found, n_flags),
        recall=_share(n_found, n_flipped),
        f1=_share(2 * n_found, n_flags + n_flipped),
        auroc={
            name: _auroc(judged[name].to_numpy() * (-1 if kind.is_lowest_first else 1), is_flipped)
            for name, kind in RANKINGS.items()
            if kind.needs_labels
        },
    )


def _share(part: int, whole: int) -> float | None:
    """The quotient; None where it is not defined."""
    return part / whole if whole else None


def _auroc(suspicion: NDArray[np.float64], is_flipped: NDArray[np.bool_]) -> float | None:
    if is_flipped.all() or not is_flipped.any():
        return None
    return float(auroc(curve_of(suspicion[is_flipped], suspicion[~is_flipped]))[0])
