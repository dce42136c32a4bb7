"""Accuracy and calibration of f and heads, over the cells of a feature set."""
