"""Quantities of Lemma 1, Theorem 1 and Eq. 10 of the paper for each row, in closed form.

The gradient of class ``I`` is ``r_I = (p - e_I) ⊗ f``: every ratio and cosine below involves
vectors of length ``N``, and no array is larger than ``[n, N]`` or ``[n, d]``. All are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reflection.losses import softmax
from stages.reflection.rank_one import RankOneGradient, last_layer_gradient

Numbers = NDArray[np.float64]
Quantities = dict[str, Numbers]
"""Name -> one number per row, shape ``(n,)``; NaN or infinite where it is undefined."""

DEFINITIONS = {
    "accuracy": "share of the rows whose largest logit is the label's",
    "feature_energy": "squared length of the last layer's input, ||f||^2",
    "impurity": "1 - ||p||^2 of the probabilities p = softmax(z)",
    "fisher_trace": "trace of the Fisher information of the last layer's weights (Eq. 10, in our "
    "reading): the mean over y ~ p of ||d log p_y / dW||^2, which is ||f||^2 (1 - ||p||^2)",
    "fisher_trace_empirical": "the same with the label for y: ||f||^2 ||p - e_label||^2",
    "energy_outside": "Lemma 1: share of ||r_I||^2 outside the columns of I and of the predicted "
    "class, mean over the classes I that are not predicted",
    "error_saturated": "Lemma 1: relative error of the saturated form f (e_predicted - e_I) of r_I",
    "error_eq16": "Lemma 1: the same for Eq. 16, whose coefficient of the predicted class is "
    "2 / its logit instead of 1",
    "cosine": "Lemma 1: cosine of r_I and r_K, mean over the pairs of classes not predicted "
    "(orthogonal: 0; saturated: 1/2)",
    "cosine_without_predicted": "Lemma 1: the same cosine without the column of the predicted "
    "class, which all r_I share",
}
_THEOREM = {
    "to_sum": "Theorem 1, {loss}: ||single pass - sum of the N passes|| / ||sum||",
    "to_stack": "Theorem 1, {loss}: ||single pass (Eq. 6) - stack (Eq. 5)|| / ||stack||",
    "cosine_stack": "Theorem 1, {loss}: cosine of the single pass and the stack",
    "rms_minmax": "Theorem 1, {loss}: root mean square of single pass - stack, each scaled to "
    "[-1, 1]",
}


def definitions(losses: Mapping[str, float | None]) -> dict[str, str]:
    """Name -> definition of every quantity that `row_quantities` returns."""
    theorem = {
        _of_loss(name, loss): text.format(loss=loss)
        for loss in losses
        for name, text in _THEOREM.items()
    }
    return DEFINITIONS | theorem


def row_quantities(
    features: NDArray[Any],
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    losses: Mapping[str, float | None],
) -> Quantities:
    """Compute every quantity of every row.

    Args:
        features: input of the last layer, shape ``(n, d)``.
        logits: its output, shape ``(n, N)``, finite.
        labels: shape ``(n,)``; negative if there is none.
        losses: loss -> its ``M``, for Theorem 1.
    """
    f, z = features.astype(np.float64), logits.astype(np.float64)
    found = fisher(f, z, labels) | lemma(z)
    for loss, M in losses.items():
        found |= {_of_loss(name, loss): v for name, v in theorem(f, z, loss=loss, M=M).items()}
    return found


def fisher(features: Numbers, logits: Numbers, labels: NDArray[np.int64]) -> Quantities:
    """Accuracy, and the trace of the Fisher information with its two factors.

    ``Σ_y p_y ||e_y - p||² = 1 - ||p||²``. For precision in float64 the difference is computed from
    the probabilities of the other classes, ``q (2 - q) - s``, with their sum and sum of squares.
    """
    p, predicted, others = _probabilities(logits)
    rows, is_labelled = np.arange(len(p)), labels >= 0
    residual = p.copy()
    residual[rows, np.where(is_labelled, labels, 0)] -= 1
    left = others.sum(axis=1)
    impurity = left * (2 - left) - (others**2).sum(axis=1)
    energy = (features**2).sum(axis=1)
    return {
        "accuracy": np.where(is_labelled, predicted == labels, np.nan),
        "feature_energy": energy,
        "impurity": impurity,
        "fisher_trace": energy * impurity,
        "fisher_trace_empirical": np.where(is_labelled, energy * (residual**2).sum(axis=1), np.nan),
    }


def lemma(logits: Numbers) -> Quantities:
    """Lemma 1 over the classes ``I`` that are not predicted; ``||f||`` cancels in all quantities.

    Eq. 16 is ``2 ∇y_ŷ / y_ŷ - ∇y_I`` with the logit ``y_ŷ``: the gradient of ``log(y_ŷ² / 2)``.
    """
    p, predicted, others = _probabilities(logits)
    rows, n_others = np.arange(len(p)), p.shape[1] - 1
    is_other = np.ones(p.shape, dtype=bool)
    is_other[rows, predicted] = False
    top = p[rows, predicted]
    rest = (others**2).sum(axis=1)  # Σ p_j² without the predicted class
    without = rest[:, None] + 1 - 2 * others  # ||r_I||² / ||f||² without the predicted column
    full = without + (top**2)[:, None]

    def mean(values: Numbers) -> Numbers:
        total: Numbers = np.where(is_other, values, 0.0).sum(axis=1) / n_others
        return total

    def error(coefficient: Numbers) -> Numbers:
        return mean(np.sqrt(((top - coefficient) ** 2 + rest)[:, None] / full))

    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "energy_outside": mean((rest[:, None] - others**2) / full),
            "error_saturated": error(np.ones(len(p))),
            "error_eq16": error(2 / logits[rows, predicted]),
            "cosine": _mean_cosine(others, is_other / np.sqrt(full), top**2 + rest),
            "cosine_without_predicted": _mean_cosine(others, is_other / np.sqrt(without), rest),
        }


def theorem(features: Numbers, logits: Numbers, *, loss: str, M: float | None) -> Quantities:
    """Theorem 1: one pass for all classes (Eq. 6) against the sum and stack of ``N`` passes."""
    single, stack, total = (
        last_layer_gradient(features, logits, loss=loss, M=M, variant=variant)
        for variant in ("single-pass", "stack", "sum")
    )
    one, own, all_of_them = single.delta, stack.delta, total.delta
    scaled, scaled_stack = single.scaled("minmax"), stack.scaled("minmax")
    assert scaled.offset is not None  # set by minmax
    assert scaled_stack.offset is not None
    difference = RankOneGradient(
        scaled.delta - scaled_stack.delta, features, scaled.offset - scaled_stack.offset
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "to_sum": _length(one - all_of_them) / _length(all_of_them),
            "to_stack": _length(one - own) / _length(own),
            "cosine_stack": (one * own).sum(axis=1) / (_length(one) * _length(own)),
            "rms_minmax": np.sqrt(difference.squared_norms() / difference.size),
        }


def class_gradients(
    features: Numbers, logits: Numbers, classes: NDArray[np.int64] | None = None
) -> Numbers:
    """``r_I`` of one image for some classes ``I`` (cross entropy), as in Fig. 5 of the paper.

    Args:
        features: shape ``(d,)``.
        logits: shape ``(N,)``.
        classes: ``n`` classes; all by default.

    Returns:
        Shape ``(n, d, n)``: class ``I``, feature, column; classes in the given order.
    """
    shown = np.arange(len(logits)) if classes is None else classes
    delta = softmax(logits)[shown] - np.eye(len(shown))
    gradients: Numbers = features[None, :, None] * delta[:, None, :]
    return gradients


def _of_loss(name: str, loss: str) -> str:
    return f"{name}_{loss.replace('-', '_')}"


def _probabilities(logits: Numbers) -> tuple[Numbers, NDArray[np.int64], Numbers]:
    """Probabilities, the predicted class, and the probabilities with that class set to zero."""
    p: Numbers = softmax(logits).astype(np.float64, copy=False)
    predicted = logits.argmax(axis=1)
    others = p.copy()
    others[np.arange(len(p)), predicted] = 0.0
    return p, predicted, others


def _mean_cosine(others: Numbers, weight: Numbers, square: Numbers) -> Numbers:
    """Mean over pairs ``I != K`` of ``(square - p_I - p_K) w_I w_K``, in ``O(N)`` per row.

    ``weight`` is the inverse length of ``r_I``, and zero for the predicted class.
    """
    n_others = others.shape[1] - 1
    weighted = others * weight
    pairs = weight.sum(axis=1) ** 2 - (weight**2).sum(axis=1)
    mixed = weight.sum(axis=1) * weighted.sum(axis=1) - (weight * weighted).sum(axis=1)
    mean: Numbers = (square * pairs - 2 * mixed) / np.float64(n_others * (n_others - 1))
    return mean


def _length(vectors: NDArray[np.floating[Any]]) -> Numbers:
    lengths: Numbers = np.sqrt((vectors**2).sum(axis=1))
    return lengths
