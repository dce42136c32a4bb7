"""Scores, thresholds and sets of conformal prediction against loops, theory and two libraries.

`TORCHCP` was made with torchcp 1.2.1, whose scores draw from torch's generator; here they are given
`DRAWS`. Its parameters are float32. Packages that it imports and that no score needs are left out:

    import sys, types
    for name in ("torchsort", "torchcp.graph", "torchcp.llm", "torchcp.regression"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchsort"].soft_rank = sys.modules["torchsort"].soft_sort = None
    import torch
    from torchcp.classification.score import APS, LAC, RAPS, SAPS
    draws = torch.tensor(DRAWS, dtype=torch.float64)[:, None]
    torch.rand = lambda *size, **_: draws
    torch.rand_like = lambda t, **_: draws.expand_as(t)
    z = torch.tensor(LOGITS, dtype=torch.float64)
    for score in (LAC(), APS(), RAPS(penalty=0.05, kreg=1), SAPS(weight=0.2)):
        print(type(score).__name__.lower(), score(z).tolist())

`CREPES` was made with crepes 0.9.1:

    from crepes import ConformalClassifier
    found = ConformalClassifier()
    found.fit(np.array(CALIBRATION))
    print(found.predict_set(np.array(SCORES), confidence=0.8, smoothing=False).tolist())
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.conformal.conformity import (
    METHODS,
    Shape,
    class_scores,
    class_thresholds,
    expected_coverage,
    rank_of_threshold,
    threshold_of,
)
from stages.conformal.set_counts import Counts, facts_of

Values = NDArray[np.float64]
SHAPE = Shape(penalty=0.05, free_ranks=1, rank_weight=0.2)

LOGITS = [[2.0, 0.5, -1.0, 0.0], [0.1, 0.2, 0.3, 0.4], [-3.0, 4.0, 1.0, 1.5]]
DRAWS = [0.3, 0.7, 0.9]
TORCHCP = {
    "lac": [
        [0.2899000771138257, 0.8415552904850203, 0.9646462065912511, 0.9038984258099028],
        [0.7861617796340156, 0.7636722176784623, 0.7388174078449243, 0.7113485948425977],
        [0.9991950080450964, 0.11721912998461836, 0.9560489284707018, 0.9275369334995832],
    ],
    "aps": [
        [0.497069946020322, 0.8210112195466601, 0.9893938619773756, 0.9358157343342222],
        [0.850313245743811, 0.6207323320089393, 0.36700618280392505, 0.08659542154722072],
        [0.999275507240587, 0.08827808700153816, 0.9596390436687282, 0.8900271766654233],
    ],
    "raps": [
        [0.497069946020322, 0.8710112202917182, 1.13939386793784, 1.0358157358243383],
        [1.0003132517042754, 0.7207323334990554, 0.4170061835489831, 0.08659542154722072],
        [1.1492755132010515, 0.08827808700153816, 1.0596390451588444, 0.9400271774104814],
    ],
    "saps": [
        [0.497069946020322, 0.8500999228861743, 1.2500999228861742, 1.0500999228861743],
        [0.7486514051574024, 0.5486514051574024, 0.34865140515740234, 0.08659542154722072],
        [1.3027808700153816, 0.08827808700153816, 1.1027808700153816, 0.9027808700153815],
    ],
}
CALIBRATION = [
    *(0.637, 0.27, 0.041, 0.017, 0.813, 0.913, 0.607, 0.729, 0.544, 0.935, 0.816, 0.003),
    *(0.857, 0.034, 0.73, 0.176, 0.863, 0.541, 0.3, 0.423, 0.028, 0.124, 0.671),
]
SCORES = [[0.31, 0.486, 0.889], [0.934, 0.358, 0.572], [0.322, 0.594, 0.338], [0.392, 0.89, 0.227]]
CREPES = [[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1]]


def softmax(logits: Values) -> Values:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slow_score(name: str, p: Values, u: float, label: int) -> float:
    """The score of a class, from the classes that are at least as probable."""
    order = sorted(range(len(p)), key=lambda c: (-p[c], c))
    rank = order.index(label) + 1
    if name == "lac":
        return 1 - p[label]
    if name == "saps":
        first = p[order[0]]
        return first - u * first if rank == 1 else first + (rank - 1 - u) * SHAPE.rank_weight
    found = min(sum(p[c] for c in order[:rank]), 1.0) - u * p[label]
    return found + (SHAPE.penalty * max(0, rank - SHAPE.free_ranks) if name == "raps" else 0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("n", "n_classes"), [(7, 5), (4, 2), (3, 1)])
def test_scores_are_those_of_a_loop_over_classes(name: str, n: int, n_classes: int) -> None:
    rng = np.random.default_rng(n)
    p, u = softmax(rng.normal(size=(n, n_classes)) * 2), rng.random(n)
    p[0] = 1 / n_classes  # ties: classes rank by their number
    found = class_scores(name, p, u, SHAPE)
    expected = [[slow_score(name, p[i], u[i], c) for c in range(n_classes)] for i in range(n)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["aps", "raps"])
def test_rounding_does_not_decide_whether_the_last_class_is_in_a_set(name: str) -> None:
    """The probabilities of a row add up to 1 exactly, whatever their sum in floating point."""
    p = softmax(np.random.default_rng(0).normal(size=(500, 10)))
    sums = np.sort(p, axis=1)[:, ::-1].cumsum(axis=1)[:, -1]
    free = Shape(penalty=0.5, free_ranks=10)

    assert (sums < 1).any()
    assert (class_scores(name, p, np.zeros(500), free).max(axis=1) == 1).all()
    assert np.isnan(class_scores(name, np.full((1, 3), np.nan), np.zeros(1), free)).all()


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_torchcp(name: str) -> None:
    found = class_scores(name, softmax(np.array(LOGITS)), np.array(DRAWS), SHAPE)
    np.testing.assert_allclose(found, TORCHCP[name], rtol=1e-7)


def test_sets_are_those_of_crepes() -> None:
    sets = np.array(SCORES) <= threshold_of(np.array(CALIBRATION), 0.2)
    assert sets.astype(int).tolist() == CREPES


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_nan_scores_nan(name: str) -> None:
    p = np.array([[0.2, 0.8], [np.nan, np.nan]])
    found = class_scores(name, p, np.full(2, 0.5), SHAPE)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("n", [1, 4, 9, 10, 19, 99, 100])
def test_the_threshold_is_the_smallest_score_that_covers_enough(n: int, alpha: float) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(float)
    tenths = round(alpha * 100)
    wanted = -(-(n + 1) * (100 - tenths) // 100)  # whole numbers: no rounding
    assert rank_of_threshold(n, alpha) == wanted
    found = threshold_of(scores, alpha)
    if wanted > n:
        assert math.isinf(found)
    else:
        assert (scores <= found).sum() == wanted


def test_tied_scores_are_all_in_or_all_out() -> None:
    scores = np.array([0.5] * 8 + [0.1, 0.9])
    assert threshold_of(scores, 0.2) == 0.5
    assert (scores <= 0.5).mean() == 0.9


def test_each_class_has_its_own_threshold_and_one_without_rows_takes_all() -> None:
    scores, labels = np.arange(20.0), np.array([0] * 9 + [2] * 11)
    found = class_thresholds(scores, labels, 3, 0.1)
    assert found.tolist() == [8.0, math.inf, 19.0]


@pytest.mark.parametrize("name", METHODS)
def test_the_coverage_of_exchangeable_rows_is_exact(name: str) -> None:
    """Mean over calibrations: k / (n + 1), within three standard errors."""
    rng, n, alpha, n_trials = np.random.default_rng(1), 24, 0.2, 4000
    covered = np.empty(n_trials)
    logits = rng.normal(size=(n_trials * (n + 1), 4)) * 1.5
    truth = logits + rng.gumbel(size=logits.shape)
    p, labels = softmax(logits * 1.7), truth.argmax(axis=1)  # overconfident
    scores = class_scores(name, p, rng.random(len(p)), SHAPE)
    of_label = scores[np.arange(len(p)), labels].reshape(n_trials, n + 1)
    for trial, row in enumerate(of_label):
        covered[trial] = row[-1] <= threshold_of(row[:-1], alpha)
    expected = rank_of_threshold(n, alpha) / (n + 1)
    assert covered.mean() == pytest.approx(expected, abs=3 * np.sqrt(0.16 / n_trials))


def test_randomised_aps_covers_exactly_its_threshold_if_the_probabilities_are_right() -> None:
    rng = np.random.default_rng(2)
    p = softmax(rng.normal(size=(4000, 5)))
    labels = (p.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)  # p is the truth

    def coverage(u: Values) -> float:
        scores = class_scores("aps", p, u, SHAPE)
        return float((scores[np.arange(4000), labels] <= 0.8).mean())

    assert coverage(rng.random(4000)) == pytest.approx(0.8, abs=0.02)
    assert coverage(np.zeros(4000)) < 0.75  # at the same threshold, sets end before the label


def test_the_expected_interval_holds_the_coverage_of_95_in_100_calibrations() -> None:
    rng, n, n_rows, alpha = np.random.default_rng(3), 50, 200, 0.1
    low, high = expected_coverage(n, n_rows, alpha)
    draws = rng.random((3000, n + n_rows))
    limits = np.sort(draws[:, :n], axis=1)[:, rank_of_threshold(n, alpha) - 1]
    found = (draws[:, n:] <= limits[:, np.newaxis]).mean(axis=1)
    inside = ((found >= low) & (found <= high)).mean()
    assert 0.945 <= inside <= 0.975  # a whole number of rows: a little more than 95 %
    assert expected_coverage(8, 10, 0.1) == (1.0, 1.0)
    assert np.isnan(expected_coverage(8, 0, 0.1)).all()


def test_counts_are_those_of_a_loop_over_rows_in_any_split() -> None:
    rng = np.random.default_rng(4)
    sets, labels = rng.random((40, 12)) < 0.2, rng.integers(0, 12, 40)
    codes, groups = rng.integers(0, 2, 40), [("fog",), ("snow",)]
    whole, parts = Counts(12), Counts(12)
    whole.add(sets, labels, codes, groups)
    for rows in (slice(0, 13), slice(13, 40)):
        part = Counts(12)
        part.add(sets[rows], labels[rows], codes[rows], groups)
        parts.merge(part)
    for code, group in enumerate(groups):
        rows = np.flatnonzero(codes == code)
        facts = facts_of(whole.by_group[group])
        assert facts["n_rows"] == len(rows)
        assert facts["coverage"] == pytest.approx(np.mean([sets[i, labels[i]] for i in rows]))
        assert facts["size"] == pytest.approx(np.mean([sets[i].sum() for i in rows]))
        assert facts["empty"] == pytest.approx(np.mean([not sets[i].any() for i in rows]))
        np.testing.assert_array_equal(whole.by_group[group], parts.by_group[group])
    shares = [np.mean([sets[i, c] for i in np.flatnonzero(labels == c)]) for c in set(labels)]
    assert whole.worst_class() == pytest.approx(min(shares))
    gaps = []
    for low, high in ((0, 1), (2, 3), (4, 10)):
        own = [i for i in range(40) if low <= sets[i].sum() <= high]
        gaps += [abs(np.mean([sets[i, labels[i]] for i in own]) - 0.9)] if own else []
    assert whole.size_gap(0.1) == parts.size_gap(0.1) == pytest.approx(max(gaps))
    assert np.isnan(Counts(3).worst_class())
    assert np.isnan(Counts(3).size_gap(0.1))
