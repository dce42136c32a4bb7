"""Predictions of f and H for image files, and f and H exported as one module."""
