"""Scores of training rows from stored factors: label errors, hard rows, near-duplicates."""
