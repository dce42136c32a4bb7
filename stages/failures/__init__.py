"""Failure detection: how well confidences rank the errors of f and of heads."""
