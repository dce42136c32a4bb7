"""What each metric is, in one line: printed with every result, because papers differ."""

from collections.abc import Sequence

DEFINITIONS: dict[str, str] = {
    "accuracy": "share of rows whose most probable class is the label",
    "ece": (
        "expected calibration error: sum over bins (lo, hi] of equal width of "
        "n_b/n * |accuracy_b - mean confidence_b|; 10 bins unless stated"
    ),
    "ece_midpoint": (
        "expected calibration error with the bin's middle in place of its mean confidence; "
        "10 bins unless stated"
    ),
    "ece_adaptive": (
        "expected calibration error over bins of equal numbers of rows by confidence, rows of "
        "confidences nearer than 0.54 % of their distance to 1 (or 2.3e-10) not parted; "
        "10 bins unless stated; no interval"
    ),
    "mce": (
        "largest |accuracy_b - mean confidence_b| over the bins that hold rows; "
        "read it beside the bin counts"
    ),
    "brier": "mean over rows and classes of (p - onehot)^2",
    "brier_sum": "mean over rows of the sum over classes of (p - onehot)^2",
    "nll": "mean of -log p_label in nats, p_label not below 2.2e-16",
    "log_likelihood": "mean of log(p_label + 1e-12) in nats",
    "entropy": "predictive entropy: mean of -sum over classes of p log p in nats, 0 log 0 = 0",
}
"""Keys are those of `stages.metrics.calibration.METRICS`."""

INFORMATION: dict[str, str] = {
    "mutual_information": (
        "mean information in nats that a label would give about the weights: entropy of the mean "
        "prediction less the mean entropy of the predictions; 0 for a single set of weights"
    ),
}
"""The metric of predictors with several sets of weights."""

DETECTION: dict[str, str] = {
    "fpr95": (
        "share of out-of-distribution (OOD) rows accepted by the strictest threshold that accepts "
        "nearest to 95 % of the in-distribution (ID) rows: ID is positive"
    ),
    "fpr95_ood_pos": (
        "share of ID rows rejected by the first threshold that rejects at least 95 % of the OOD "
        "rows: OOD is positive, as in OpenOOD and pytorch-ood"
    ),
    "detection_error": (
        "smallest (1 - TPR + FPR) / 2 of any threshold, TPR and FPR the shares of ID and of OOD "
        "rows that it accepts"
    ),
    "auroc": (
        "area under TPR against FPR: the chance that an ID row scores higher than an OOD row, "
        "equal scores counted half"
    ),
    "aupr_in": "area under precision against recall by trapezoids, ID positive",
    "aupr_out": "area under precision against recall by trapezoids, OOD positive",
    "fpr95_sweep": (
        "fpr95 of the paper's code base, by the loosest threshold that accepts these ID rows: rows "
        "are taken away one by one, ID before OOD rows of equal score; no interval"
    ),
    "auroc_sweep": (
        "auroc under that sweep: equal scores counted as lost, which confidences that round to 1 "
        "make matter; no interval"
    ),
}
"""Keys are those of `stages.metrics.detection.detection_summary`."""

SELECTIVE: dict[str, str] = {
    "error_rate": "share of rows whose prediction is wrong: the risk at full coverage",
    "aurc": (
        "area under the risk-coverage curve: mean over k = 1..n of the share of errors among the k "
        "most confident rows; equal confidences averaged over all their orders"
    ),
    "augrc": (
        "area under the generalised risk-coverage curve: mean over k = 1..n of the errors among "
        "the k most confident rows divided by n; equal confidences averaged over all their orders"
    ),
    "e_aurc": "aurc less that of the order that ranks every error below every correct row",
    "auroc_f": (
        "chance that a correct row has a higher confidence than a wrong one, equal confidences "
        "counted half; failures are the negative class"
    ),
    "risk_at_50": "share of errors among the 50 % most confident rows",
    "risk_at_80": "share of errors among the 80 % most confident rows",
    "risk_at_90": "share of errors among the 90 % most confident rows",
    "coverage_at_1": "largest share of rows that a threshold keeps with at most 1 % errors",
    "coverage_at_5": "largest share of rows that a threshold keeps with at most 5 % errors",
}
"""Keys are those of `stages.metrics.selective.SELECTIVE_METRICS`."""

REFERENCE = "f"
"""Label of the network itself in results; gains are relative to it."""

STATISTICS: dict[str, str] = {
    "mean": "plain mean over cells of the cell's metric, then over seeds",
    "std": "standard deviation over seeds, n - 1 in the denominator",
    "gain": "mean of the predictor less that of f, on the same rows",
    "interval": (
        "95 % interval of a Poisson bootstrap over source images, each with one weight in all "
        "cells and for all predictors; seeds and cells are held fixed; percentiles of the "
        "resamples' deviations from their mean, laid around the value, because resampling adds "
        "noise to every bin and so lifts calibration errors"
    ),
}
"""How a result puts cells, seeds and resamples together."""


def statistics_of(cells: Sequence[str]) -> dict[str, str]:
    """`STATISTICS` with the sample columns whose values are the cells; empty for a single cell.

    >>> statistics_of(["label"])["mean"]
    "plain mean over cells (label) of the cell's metric, then over seeds"
    """
    over = f"cells ({', '.join(cells)}) of the cell's metric, then over seeds"
    return STATISTICS | {"mean": f"plain mean over {over if cells else 'seeds'}"}
