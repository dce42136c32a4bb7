"""Heads: H on gradient features, the controls beside it, their training and predictions."""
