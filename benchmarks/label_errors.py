"""Flip labels of stored features, and measure how well `curate` finds them, beside cleanlab.

`python -m benchmarks.label_errors STORE FEATURES...` judges the flips on which the network of each
feature set was trained (`train-sensing --flip-labels`, or the recipe label-errors). If it was
trained on none, it flips 5 and 20 % of the labels, symmetric and pairwise, and only refits of the
last layer see them. Prints a table of precision, recall and F1 of the flags, and of the AUROC of
each score. Needs cleanlab, which is no dependency.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from cli.output import table
from stages.curation.curate import flips_of_training
from stages.curation.ranked_rows import Rows, label_columns, out_of_sample
from stages.data.flips import Flips
from store.catalog import FeatureStore

FLIPS = ("symmetric:0.05", "pairwise:0.05", "symmetric:0.2", "pairwise:0.2")
SEED = 0
LOW = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

Flags = NDArray[np.bool_]
Line = dict[str, Any]  # Any: text and numbers


def measured(rows: Rows, flips: Flips, folds: int) -> list[Line]:
    """A line for `curate` and one for cleanlab, on the same probabilities."""
    given = replace(rows, labels=flips.flipped(rows.labels, rows.n_classes))
    is_wrong = given.labels != rows.labels
    p = out_of_sample(given, folds, SEED, lambda _: None)
    columns, _ = label_columns(given, p)
    exact = p.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    theirs = {name: get_label_quality_scores(given.labels, exact, method=name) for name in LOW}
    setting = {"flipped": str(flips), "probabilities": "refits" if folds else "stored"}
    flags, other = columns["is_label_issue"], find_label_issues(given.labels, exact, n_jobs=1)
    more = {"el2n": roc_auc_score(is_wrong, columns["el2n"])}
    return [
        {**setting, "by": "curate", **_scores(is_wrong, flags, columns), **more},
        {**setting, "by": "cleanlab", **_scores(is_wrong, other, theirs)}
        | {"equal_flags": float((flags == other).mean())},
    ]


def _scores(is_wrong: Flags, flags: Flags, scores: dict[str, Any]) -> Line:
    precision, recall, f1, _ = precision_recall_fscore_support(is_wrong, flags, average="binary")
    areas = {name: roc_auc_score(is_wrong, -scores[name]) for name in LOW}
    return {
        "flagged": int(flags.sum()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        **areas,
    }


def main() -> None:
    """Measure all settings of the feature sets."""
    store = FeatureStore(sys.argv[1])
    lines: list[Line] = []
    for name in sys.argv[2:]:
        found = store.open(name)
        rows, trained = Rows.of(found), flips_of_training(store, found)
        for folds in (5, 0):
            for flips in [trained] if trained else FLIPS:
                lines += measured(rows, Flips.of(flips), folds)
    print(table(lines, [*lines[0], "equal_flags"]))


if __name__ == "__main__":
    main()
