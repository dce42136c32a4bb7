"""Predictions and scores of a feature set for other programs, such as labelling tools."""
