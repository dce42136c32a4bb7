"""Pruning: accuracy of the last layer trained on a share of the training rows."""
