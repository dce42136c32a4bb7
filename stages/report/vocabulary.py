"""Names used by reports, without heavy imports."""

from __future__ import annotations

from stages.metrics.definitions import DEFINITIONS, DETECTION

PAPER_TABLES = ("table-1", "table-2", "table-3", "table-5", "table-7", "table-8", "table-11")
FIGURES = (
    "accuracy-vs-ece",
    "gain-by-corruption",
    "gain-by-level",
    "ece-by-level",
    "accuracy-by-class",
    "reliability",
    "by-epoch",
)
LEARNING_FIGURES = ("learning-curves",)
TABLE_METRICS = ("accuracy", "ece", "mce", "brier")

COLUMNS = (
    *("predictor", "other", "contender", "set", "seed", "n_seeds", "corruption", "severity"),
    *("label", "class"),
    *("n_rows", "n_correct", "confidence_sum", "bin", "share", "confidence"),
    *("strategy", "kind", "test", "round", "labelled"),
    *("metric", "mean", "std", "low", "high", "min", "max", "difference", "verdict"),
    *("gain", "gain_low", "gain_high", "paper", "paper_gain", "paper_dataset", "paper_note"),
    *DEFINITIONS,
    *DETECTION,
)
"""Columns of results and reports: an axis cannot have one of these names."""
