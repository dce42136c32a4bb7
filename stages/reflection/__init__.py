"""Reflection: losses, rank-one gradients, and the stage that extracts what they are made of."""
