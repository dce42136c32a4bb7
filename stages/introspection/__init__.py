"""Heads: H on gradient features and its controls, their training and predictions."""
