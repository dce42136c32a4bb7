"""Flip labels of stored features, and measure how well `curate` finds them, beside cleanlab.

`python -m benchmarks.label_errors STORE FEATURES` flips 5 and 20 % of the labels with a seed:
symmetric flips go to any other class, pairwise flips to the next one. The network is not trained
again; refits of its last layer see the flipped labels. Prints a table of precision, recall and F1
of the flags, and of the AUROC of each score. Needs cleanlab, which is no dependency.
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
from stages.curation.ranked_rows import Rows, label_columns, out_of_sample
from store.catalog import FeatureStore

SHARES, KINDS, SEED = (0.05, 0.2), ("symmetric", "pairwise"), 0
LOW = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

Flags = NDArray[np.bool_]
Line = dict[str, Any]  # Any: text and numbers


def flipped(
    labels: NDArray[np.int64], n_classes: int, share: float, kind: str
) -> NDArray[np.int64]:
    """Labels of which a share was flipped."""
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    moves = rng.integers(1, n_classes, len(chosen)) if kind == "symmetric" else 1
    found = labels.copy()
    found[chosen] = (found[chosen] + moves) % n_classes
    return found


def measured(rows: Rows, share: float, kind: str, folds: int) -> list[Line]:
    """A line for `curate` and one for cleanlab, on the same probabilities."""
    given = replace(rows, labels=flipped(rows.labels, rows.n_classes, share, kind))
    is_wrong = given.labels != rows.labels
    p = out_of_sample(given, folds, SEED, lambda _: None)
    columns, _ = label_columns(given, p)
    exact = p.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    theirs = {name: get_label_quality_scores(given.labels, exact, method=name) for name in LOW}
    setting = {"flipped": f"{share:.0%} {kind}", "probabilities": "refits" if folds else "stored"}
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
    """Measure all settings of a feature set."""
    rows = Rows.of(FeatureStore(sys.argv[1]).open(sys.argv[2]))
    lines: list[Line] = []
    for folds in (5, 0):
        for share in SHARES:
            for kind in KINDS:
                lines += measured(rows, share, kind, folds)
    print(table(lines, [*lines[0], "equal_flags"]))


if __name__ == "__main__":
    main()
