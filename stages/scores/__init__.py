"""Scores of rows from the factors of a last layer: confidences and detectors, of f and of heads."""
