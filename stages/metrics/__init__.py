"""Measures of predictions as pure functions: accuracy and calibration from mergeable sums."""
