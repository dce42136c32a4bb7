"""Which labels are likely wrong: confident learning.

After Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
JAIR 70 (2021). ``p`` are out-of-sample probabilities ``[n, N]``; every row has a label. The
independent implementation that the tests compare with is cleanlab's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from stages.scores.factors import row_blocks
from stages.scores.training_value import excess

Probabilities = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Values = NDArray[np.float64]

TOLERANCE = 1e-6
"""A probability this far below its threshold counts as reaching it, as in cleanlab: the mean of
equal numbers may exceed them by rounding."""


@dataclass(frozen=True, eq=False)
class Confident:
    """What confident learning finds.

    Attributes:
        thresholds: mean probability of each class over the rows labelled with it, ``[N]``; NaN for
            a class without rows.
        joint: ``[i, j]`` counts the rows labelled ``i`` that are confidently of class ``j``.
        expected: the same, scaled so that row ``i`` sums to the number of rows labelled ``i``.
        is_issue: flags rows whose label is likely wrong, ``[n]``.
    """

    thresholds: Values
    joint: NDArray[np.int64]
    expected: NDArray[np.int64]
    is_issue: NDArray[np.bool_]


def confident_learning(p: Probabilities, labels: Labels) -> Confident:
    """Thresholds, joint counts and flags of labelled rows."""
    at = thresholds(p, labels)
    joint = confident_joint(p, labels, at)
    expected = expected_counts(joint, np.bincount(labels, minlength=p.shape[1]))
    return Confident(at, joint, expected, pruned_by_noise_rate(p, labels, expected))


def thresholds(p: Probabilities, labels: Labels) -> Values:
    """``t_j``: the mean of ``p_j`` over the rows labelled ``j``; NaN for a class without rows."""
    counts = np.bincount(labels, minlength=p.shape[1])
    sums = np.bincount(labels, weights=self_confidence(p, labels), minlength=p.shape[1])
    found: Values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return found


def confident_joint(p: Probabilities, labels: Labels, at: Values) -> NDArray[np.int64]:
    """``C[i, j]``: rows labelled ``i`` whose likeliest class that reaches its threshold is ``j``.

    Equation 1 of the paper. A row that reaches no threshold is not counted, and a class without
    rows has none to reach. As in cleanlab, every class with rows
    counts at least one row as correct.
    """
    n_classes = p.shape[1]
    joint = np.zeros((n_classes, n_classes), np.int64)
    for rows in row_blocks(len(p)):
        reached = np.where(p[rows] >= at - TOLERANCE, p[rows], -1.0)
        guess = reached.argmax(axis=1)
        is_confident = reached.max(axis=1) >= 0
        np.add.at(joint, (labels[rows][is_confident], guess[is_confident]), 1)
    diagonal = np.maximum(np.diagonal(joint), ~np.isnan(at))
    np.fill_diagonal(joint, diagonal)
    return joint


def expected_counts(joint: NDArray[np.int64], n_labelled: NDArray[np.int64]) -> NDArray[np.int64]:
    """The joint counts, scaled to the number of rows of each label, and rounded (Equation 3).

    Rounding keeps the sum of a row: the largest remainders are rounded up, the last of equal ones,
    as in cleanlab.
    """
    sums = np.maximum(joint.sum(axis=1), 1)
    exact = joint / sums[:, None] * n_labelled[:, None]
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    for label, left in enumerate((n_labelled - counts.sum(axis=1)).tolist()):
        order = np.argsort(exact[label] - counts[label], kind="stable")
        counts[label, order[len(order) - left :]] += 1
    return counts


def pruned_by_noise_rate(
    p: Probabilities, labels: Labels, expected: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Flag, for labels ``i`` and classes ``j``, the ``expected[i, j]`` rows of largest p_j - p_i.

    "Prune by noise rate" (section 3.2 of the paper). As in cleanlab, a row whose likeliest class is
    its label is not flagged, nor is the only row of a class. Of equal rows the first are taken.
    """
    flags = np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=p.shape[1]))
    for label, rows in enumerate(np.split(order, ends[:-1])):
        if len(rows) < 2:
            continue
        own = p[rows]
        for other in np.flatnonzero(expected[label]).tolist():
            if other != label:
                ranked = np.argsort(own[:, label] - own[:, other], kind="stable")
                flags[rows[ranked[: expected[label, other]]]] = True
        flags[rows[own.argmax(axis=1) == label]] = False
    return flags


def self_confidence(p: Probabilities, labels: Labels) -> Values:
    """``p_y``, the probability of the label."""
    return p[np.arange(len(labels)), labels].astype(np.float64)


def normalized_margin(p: Probabilities, labels: Labels) -> Values:
    """``(1 + p_y - max_{k≠y} p_k) / 2``; if there is one class, 1."""
    found = np.empty(len(labels))
    for rows in row_blocks(len(p)):
        found[rows] = (1 - excess(p[rows], labels[rows])) / 2
    return found


def confidence_weighted_entropy(p: Probabilities, labels: Labels) -> Values:
    """``log(1 + x) / x`` with ``x = H(p) / (p_y log N)``: from 0, suspect, to 1.

    The score of cleanlab (Kuan and Mueller, "Model-agnostic label quality scoring to detect
    real-world label errors", 2022), rescaled as there. It is 0 where ``p_y`` is 0.
    """
    entropy = np.empty(len(labels))
    for rows in row_blocks(len(p)):
        entropy[rows] = entr(p[rows].astype(np.float64)).sum(axis=1)
    own = self_confidence(p, labels) * np.log(max(p.shape[1], 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        x = entropy / own
        found: Values = np.log1p(x) / x
    return np.where(own == 0, 0.0, np.where(x == 0, 1.0, found))
