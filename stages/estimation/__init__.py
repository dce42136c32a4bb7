"""Accuracy of groups of rows without their labels, estimated from a labelled source set."""
