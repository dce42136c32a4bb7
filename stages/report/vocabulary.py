"""Names used by reports, without heavy imports."""

from __future__ import annotations

from stages.metrics.definitions import DEFINITIONS, DETECTION, INFORMATION, SELECTIVE

PAGES: dict[str, str] = {
    "evaluate": "stages.report.judged:EVALUATION",
    "ood": "stages.report.judged:DETECTION",
    "uncertainty": "stages.report.judged:UNCERTAINTY",
    "detect-failures": "stages.report.failure_page:FAILURES",
    "curate": "stages.report.curation_page:CURATION",
    "active-learning-curves": "stages.report.learning:LEARNING",
    "evaluate-maps": "stages.report.faithfulness_page:FAITHFULNESS",
    "influence": "stages.report.influence_page:INFLUENCE",
    "prune": "stages.report.pruning_page:PRUNING",
    "iqa": "stages.report.quality:QUALITY",
    "conformal": "stages.report.set_coverage:CONFORMITY",
    "estimate-accuracy": "stages.report.estimated:ESTIMATION",
}
"""Stage name in a result's plan -> module and name of its `PageKind`. A new kind of page is
one line here."""

PAPER_TABLES = (
    "table-1",
    "table-2",
    "table-3",
    "table-4",
    "table-5",
    "table-6",
    "table-7",
    "table-8",
    "table-11",
)
FIGURES = (
    # of evaluations and detections
    "accuracy-vs-ece",
    "gain-by-corruption",
    "gain-by-level",
    "gain-map",
    "gain-cells",
    "ece-by-level",
    "accuracy-by-class",
    "reliability",
    "auroc-by-detector",
    "by-epoch",
    # of uncertainty
    "nll-by-level",
    "entropy-by-level",
    "information-by-level",
    # of failure detection
    "risk-coverage",
    "confidence-ranking",
    # of curation
    "confident-joint",
    "issues-by-class",
    "score-distribution",
    # of active learning
    "learning-curves",
    # of image quality
    "quality-scatter",
    "quality-monotony",
    # of prediction sets
    "coverage-by-level",
    "set-size-by-level",
    "coverage-by-class",
    # of pruned training sets
    "accuracy-by-share",
    # of estimated accuracies
    "estimated-accuracy",
    "accuracy-rankings",
)
"""All figures that reports may have; the modules in `PAGES` draw them."""
TABLE_METRICS = ("accuracy", "ece", "mce", "brier")
DETECTION_METRICS = ("fpr95", "fpr95_sweep", "detection_error", "auroc")
"""Default columns of the tables of evaluations and detections: those of the paper's tables, and
the FPR as the paper's code base computes it."""
UNCERTAINTY_METRICS = ("accuracy", "nll", "brier_sum", "ece", "entropy", "mutual_information")
FAILURE_METRICS = ("aurc", "augrc", "auroc_f", "risk_at_80", "coverage_at_5")
"""Default columns of the tables of uncertainty and of failure detection."""

COLUMNS = (
    *("predictor", "other", "contender", "set", "seed", "n_seeds", "corruption", "severity"),
    *("label", "class"),
    *("n_rows", "n_correct", "confidence_sum", "bin", "share", "confidence"),
    *("strategy", "kind", "test", "round", "labelled"),
    *("metric", "mean", "std", "low", "high", "min", "max", "difference", "verdict", "clean"),
    *("gain", "gain_low", "gain_high", "paper", "paper_gain", "paper_dataset", "paper_note"),
    *DEFINITIONS,
    *DETECTION,
    *INFORMATION,
    *SELECTIVE,
    *("coverage", "risk", "clean"),
    *("n_issues", "threshold", "commonest"),
    *("score", "keep", "gain_std", "n_listed", "own_class", "overlap", "mean_score"),
)
"""Columns of results and reports: an axis cannot have one of these names."""
