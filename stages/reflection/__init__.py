"""Reflection: losses, rank-one gradients, and the stage that extracts their factors."""
