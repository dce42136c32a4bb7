"""Detectors ranked by their means over sets, in a table and as dots."""

import pandas as pd
import pytest
from matplotlib import rc_context

from stages.report.page import ranking_grid
from stages.report.palette import SETTINGS
from stages.report.ranking import draw_by_detector, ranked, shared_sets
from stages.report.svg import svg_of

# AUROC by detector, set and predictor; `odin` was not compared on `noise`.
AUROC = {
    "msp": {"cats": (0.8, 0.7), "ducks": (0.9, 0.6), "noise": (0.7, 0.7)},
    "vim": {"cats": (0.6, 0.95), "ducks": (0.7, 0.85), "noise": (0.9, 0.9)},
    "odin": {"cats": (0.5, 0.5), "ducks": (0.5, 0.5)},
}


@pytest.fixture
def found():
    groups = {"cats": "near", "ducks": "far", "noise": "far"}
    return pd.DataFrame(
        [
            {
                "predictor": predictor,
                "seed": seed,
                "auroc": value + seed * 0.02 - 0.01,
                "fpr95": 1 - value,
                "detector": detector,
                "out": out,
                "group": groups[out],
            }
            for detector, sets in AUROC.items()
            for out, values in sets.items()
            for predictor, value in zip(("f", "H"), values, strict=True)
            for seed in (0, 1)
        ]
    )


def test_means_are_over_the_sets_that_all_detectors_have(found):
    table = ranked(found)

    assert shared_sets(found) == ["cats", "ducks"]
    assert table.index.tolist()[:2] == [("vim", "H"), ("msp", "f")]
    assert table.loc[("vim", "H"), ("auroc", "all")] == pytest.approx(0.9)
    assert table.loc[("msp", "f"), ("auroc", "near")] == pytest.approx(0.8)
    assert table.loc[("msp", "f"), ("fpr95", "far")] == pytest.approx(0.1)


def test_the_best_of_each_column_is_marked(found):
    grid = ranking_grid(ranked(found), shared_sets(found))
    best = {line.names[0]: [cell.is_best for cell in line.cells] for line in grid.lines}

    assert grid.lines[0].names == ("1. vim, H",)
    assert grid.heads[:2] == ("AUROC, all", "FPR at 95 % TPR, all")
    assert best["1. vim, H"] == [True, True, True, True, False, False]
    assert best["2. msp, f"] == [False, False, False, False, True, True]


def test_sets_without_groups_have_one_mean(found):
    assert ranked(found.assign(group="")).columns.tolist() == [("auroc", "all"), ("fpr95", "all")]


def test_the_figure_names_detectors_and_predictors(found):
    with rc_context(SETTINGS):
        svg = svg_of(draw_by_detector(found, ()), "auroc-by-detector", "AUROC")

    assert all(f">{name}<" in svg for name in ("msp", "vim", "odin", "f", "H"))
