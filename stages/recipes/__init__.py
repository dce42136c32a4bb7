"""Recipes of the paper's tables and figures, and the kinds of their steps."""
