"""Results of comparing two feature sets by one detector.

A result has ``by-group``, ``average`` and ``differences.parquet``, in the format of an evaluation,
so that both can be shown by the same code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.make import Output
from stages.errors import InputError
from stages.introspection.comparison_card import Cells, ComparisonCard, Dataset
from stages.introspection.contenders import Contender
from stages.introspection.head_card import head_card
from stages.introspection.heads import labels_of
from stages.introspection.predictors import LastLayer, divided, factors
from stages.introspection.preparation import OfModel
from stages.metrics.averages import average_table, difference_table
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DETECTION, REFERENCE, statistics_of
from stages.metrics.detection import CURVE_METRICS, Scores, curve_of, detection_summary
from stages.metrics.finite import finite_rows
from stages.ood.sides import Sides, plan_of
from stages.scores.factors import TrainingRows
from stages.scores.known_scores import DETECTORS
from stages.versions import versions
from store.artifacts import Artifact
from store.featureset import FeatureSet

_TABLES = ("by_group", "average", "differences")
_RESAMPLES_AT_ONCE = 50
_OUTSIDE = 2**32
"""Added to the rows of the out-of-distribution set, to give them other bootstrap weights."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Parameters of a comparison: detector, rows per side, resamples and seed."""

    detector: str
    rows: int
    n_resamples: int
    seed: int


@dataclass(frozen=True)
class Detection:
    """A stored result; its tables have the columns of those of an evaluation."""

    artifact: Artifact
    card: ComparisonCard
    by_group: pd.DataFrame
    average: pd.DataFrame
    differences: pd.DataFrame


def open_detection(result: Artifact) -> Detection:
    """Open a finished result; raises ``NotFoundError``, ``DamagedError``."""
    tables = {name: result.read_frame(f"{name.replace('_', '-')}.parquet") for name in _TABLES}
    return Detection(result, ComparisonCard.of(result), **tables)


def detected(sides: Sides, contenders: Sequence[Contender], comparison: Comparison) -> Output:
    """The tables and the card of f beside heads.

    Both sides have the same number of rows, drawn with the seed: ``rows``, or as many as the
    smaller side has. Rows without finite vectors are left out first.
    """
    started = time.monotonic()
    data = _Data.of(sides, comparison)
    judges: dict[str, dict[int, LastLayer | None]] = {REFERENCE: {0: None}}
    judges |= {each.label: dict(factors(each.head)) for each in contenders}
    rows: list[dict[str, Any]] = []
    resampled: dict[str, NDArray[np.float64]] = {}
    for label, seeds in judges.items():
        values = []
        for seed, factors_of in seeds.items():
            inside, outside = data.scores(comparison.detector, label, factors_of)
            found = detection_summary(inside, outside)
            rows.append({"predictor": label, "seed": seed, "n_rows": data.n_rows, **found})
            values.append(data.resampled(inside, outside))
        resampled[label] = np.mean(values, axis=0)
    by_group = pd.DataFrame(rows)
    by_seed = by_group.set_index(["predictor", "seed"])[list(DETECTION)]
    tables = {
        "by-group": by_group,
        "average": average_table(by_seed, resampled),
        "differences": difference_table(by_seed, resampled),
    }
    files = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
    return files, _card(sides, contenders, comparison, data, judges, started).to_dict()


_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features and logits."""


@dataclass(frozen=True)
class _Data:
    """The vectors that are compared, and the weights of their resamples."""

    inside: _Pair
    outside: _Pair
    training: tuple[_Pair, NDArray[np.int64]] | None
    weights: NDArray[np.uint8]
    n_left_out: int

    @classmethod
    def of(cls, sides: Sides, comparison: Comparison) -> _Data:
        """Draw the same number of rows from both sides."""
        pairs, usable = [], []
        for each in (sides.inside, sides.outside):
            pair = _read(each)
            kept = np.flatnonzero(finite_rows(*pair))
            if not len(kept):
                raise InputError(f"ood: {each.name}: all rows failed, see the column `status`")
            pairs.append(pair)
            usable.append(kept)
        n_rows = min(comparison.rows, *map(len, usable))
        chosen = [
            np.sort(np.random.default_rng([comparison.seed, side]).permutation(kept)[:n_rows])
            for side, kept in enumerate(usable)
        ]
        resampling = Resampling(comparison.n_resamples, comparison.seed)
        images = np.concatenate([chosen[0], chosen[1] + _OUTSIDE])
        inside, outside = ((f[at], z[at]) for (f, z), at in zip(pairs, chosen, strict=True))
        n_left_out = sum(len(f) - len(kept) for (f, _), kept in zip(pairs, usable, strict=True))
        is_fitted = DETECTORS[comparison.detector].fit is not None
        training = _training(sides) if is_fitted else None
        return cls(inside, outside, training, resampling.weights(images), n_left_out)

    @property
    def n_rows(self) -> int:
        """Number of rows of each side."""
        return len(self.inside[0])

    def scores(self, name: str, label: str, factors_of: LastLayer | None) -> tuple[Scores, Scores]:
        """Scores of both sides by the predictor with this label: f itself, or a head."""
        detector = DETECTORS[name]
        turn = _finite_or_refused(label, factors_of or partial(divided, detector.temperature))
        score = detector.score
        if detector.fit is not None:
            assert self.training is not None  # checked by check_sides
            (training, of_training), labels = self.training
            score = detector.fit(TrainingRows.of(*turn(training, of_training), labels))
        assert score is not None  # a detector has a score or is fitted
        inside, outside = (score(*turn(*each)) for each in (self.inside, self.outside))
        return detector.certain(inside), detector.certain(outside)

    def resampled(self, inside: Scores, outside: Scores) -> NDArray[np.float64]:
        """The metrics of `DETECTION` in each resample; NaN for those that are not resampled."""
        n_resamples = self.weights.shape[1]
        found = np.full((len(DETECTION), n_resamples), np.nan)
        for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
            some = slice(start, start + _RESAMPLES_AT_ONCE)
            curve = curve_of(inside, outside, self.weights[:, some])
            for at, metric in enumerate(CURVE_METRICS.values()):
                found[at, some] = metric(curve)
        return found


def _finite_or_refused(label: str, turn: LastLayer) -> LastLayer:
    """The same factors; raises ``InputError`` if a head's output for finite rows is not finite.

    A single such row stops the comparison, because head and f would be scored on different rows.
    """

    def turned(features: NDArray[Any], logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        found = turn(features, logits)
        usable = finite_rows(features, logits)
        if n_bad := int((usable & ~finite_rows(*found)).sum()):
            raise InputError(
                f"ood: the output of head '{label}' is not finite for {n_bad:,} of "
                f"{usable.sum():,} rows with finite features: leave it out of --head (--head none "
                "compares f alone)"
            )
        return found

    return turned


def _read(found: OfModel) -> _Pair:
    assert isinstance(found, FeatureSet)  # not a plan: it exists by now
    return found.read("features"), found.read("logits")


def _training(sides: Sides) -> tuple[_Pair, NDArray[np.int64]]:
    assert isinstance(sides.training, FeatureSet)  # checked by check_sides
    labels = labels_of(sides.training)
    return _read(sides.training), labels


def _card(
    sides: Sides,
    contenders: Sequence[Contender],
    comparison: Comparison,
    data: _Data,
    judges: dict[str, dict[int, LastLayer | None]],
    started: float,
) -> ComparisonCard:
    plan, detector = plan_of(sides.inside), comparison.detector
    return ComparisonCard(
        title=f"{sides.name} by {detector}, {data.n_rows:,} images of each",
        features=sides.inside.name,
        against=sides.outside.name,
        training=sides.training.name if sides.training and data.training else None,
        model=plan.model.name,
        dataset=Dataset(sides.name, plan.source.split, plan.source.fingerprint),
        rows=data.n_rows,
        cells=Cells((), 1),
        detector=detector,
        perturbations={
            "inside": plan.perturbations,
            "outside": plan_of(sides.outside).perturbations,
        },
        contenders={each.label: head_card(each.head) for each in contenders},
        seeds={label: tuple(seeds) for label, seeds in judges.items()},
        left_out_rows=dict.fromkeys(judges, data.n_left_out),
        n_resamples=comparison.n_resamples,
        bootstrap_seed=comparison.seed,
        definitions={detector: DETECTORS[detector].definition, **DETECTION},
        statistics=statistics_of(()),
        versions=versions(),
        seconds=round(time.monotonic() - started, 1),
    )
