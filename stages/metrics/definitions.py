"""What each metric is, in one line: printed with every result, because papers differ."""

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
    "mce": (
        "largest |accuracy_b - mean confidence_b| over the bins that hold rows; "
        "read it beside the bin counts"
    ),
    "brier": "mean over rows and classes of (p - onehot)^2",
    "brier_sum": "mean over rows of the sum over classes of (p - onehot)^2",
    "nll": "mean of -log p_label in nats, p_label not below 2.2e-16",
    "log_likelihood": "mean of log(p_label + 1e-12) in nats",
}
"""Keys are those of `stages.metrics.calibration.METRICS`."""
