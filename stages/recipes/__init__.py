"""Recipes of the paper's tables and figures, and the kinds of steps that they are made of."""
