"""Results of comparing two feature sets by one detector.

A result has ``by-group``, ``average`` and ``differences.parquet``, in the format of an evaluation,
so that both can be shown by the same code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.make import Output
from stages.introspection.comparison_card import Cells, ComparisonCard, Dataset
from stages.introspection.contenders import Contender
from stages.introspection.head_card import head_card
from stages.metrics.averages import average_table, difference_table
from stages.metrics.bootstrap import Resampling
from stages.metrics.definitions import DETECTION, statistics_of
from stages.metrics.detection import CURVE_METRICS, Scores, curve_of, detection_summary
from stages.ood.scoreboard import Scoreboard, existing
from stages.ood.sides import Sides, plan_of
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
    """Parameters of a comparison: detector, rows per side, resamples, seed, group of the others."""

    detector: str
    rows: int
    n_resamples: int
    seed: int
    group: str | None = None


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


def detected(
    sides: Sides, contenders: Sequence[Contender], comparison: Comparison, board: Scoreboard
) -> Output:
    """The tables and the card of f beside heads.

    Both sides have the same number of rows, drawn with the seed: ``rows``, or as many as the
    smaller side has. Rows without finite vectors are left out first.
    """
    started = time.monotonic()
    pair = _Pair.of(sides, comparison, board)
    rows: list[dict[str, Any]] = []
    resampled: dict[str, NDArray[np.float64]] = {}
    for label, seeds in board.seeds().items():
        values = []
        for seed in seeds:
            inside, outside = pair.scores(board, comparison.detector, label, seed)
            found = detection_summary(inside, outside)
            rows.append({"predictor": label, "seed": seed, "n_rows": pair.n_rows, **found})
            values.append(pair.resampled(inside, outside))
        resampled[label] = np.mean(values, axis=0)
    by_group = pd.DataFrame(rows)
    by_seed = by_group.set_index(["predictor", "seed"])[list(DETECTION)]
    tables = {
        "by-group": by_group,
        "average": average_table(by_seed, resampled),
        "differences": difference_table(by_seed, resampled),
    }
    files = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
    return files, _card(sides, contenders, comparison, pair, board, started).to_dict()


@dataclass(frozen=True)
class _Pair:
    """The sets that are compared, and the weights of their resamples.

    Attributes:
        sets: the two sets.
        orders: places of the compared rows in each draw, by ascending row number.
        weights: weights of the rows in each resample.
        n_left_out: number of rows of both sides that are not finite.
    """

    sets: tuple[FeatureSet, FeatureSet]
    orders: tuple[NDArray[np.int64], ...]
    weights: NDArray[np.uint8]
    n_left_out: int

    @classmethod
    def of(cls, sides: Sides, comparison: Comparison, board: Scoreboard) -> _Pair:
        """As many rows of both sides."""
        sets = (existing(sides.inside), existing(sides.outside))
        drawn = [board.drawn(each, side) for side, each in enumerate(sets)]
        n_rows = min(len(each.rows) for each in drawn)
        orders = tuple(np.argsort(each.rows[:n_rows]) for each in drawn)
        chosen = [each.rows[order] for each, order in zip(drawn, orders, strict=True)]
        resampling = Resampling(comparison.n_resamples, comparison.seed)
        images = np.concatenate([chosen[0], chosen[1] + _OUTSIDE])
        n_left_out = sum(each.n_left_out for each in drawn)
        return cls(sets, orders, resampling.weights(images), n_left_out)

    @property
    def n_rows(self) -> int:
        """Number of rows of each side."""
        return len(self.orders[0])

    def scores(
        self, board: Scoreboard, detector: str, label: str, seed: int
    ) -> tuple[Scores, Scores]:
        """Scores of both sides by a predictor."""
        inside, outside = (
            board.scores(detector, label, seed, self.sets[side], side)[self.orders[side]]
            for side in (0, 1)
        )
        return inside, outside

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


def _card(
    sides: Sides,
    contenders: Sequence[Contender],
    comparison: Comparison,
    pair: _Pair,
    board: Scoreboard,
    started: float,
) -> ComparisonCard:
    plan, detector = plan_of(sides.inside), comparison.detector
    return ComparisonCard(
        title=f"{sides.name} by {detector}, {pair.n_rows:,} images of each",
        features=sides.inside.name,
        against=sides.outside.name,
        training=sides.training.name if sides.training and DETECTORS[detector].fit else None,
        model=plan.model.name,
        dataset=Dataset(sides.name, plan.source.split, plan.source.fingerprint),
        rows=pair.n_rows,
        cells=Cells((), 1),
        detector=detector,
        group=comparison.group,
        perturbations={
            "inside": plan.perturbations,
            "outside": plan_of(sides.outside).perturbations,
        },
        contenders={each.label: head_card(each.head) for each in contenders},
        seeds={label: tuple(seeds) for label, seeds in board.seeds().items()},
        left_out_rows=dict.fromkeys(board.seeds(), pair.n_left_out),
        n_resamples=comparison.n_resamples,
        bootstrap_seed=comparison.seed,
        definitions={detector: DETECTORS[detector].definition, **DETECTION},
        statistics=statistics_of(()),
        versions=versions(),
        seconds=round(time.monotonic() - started, 1),
    )
