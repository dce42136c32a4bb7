"""Names of the colour maps, without heavy imports."""

from __future__ import annotations

COLOUR_MAPS = ("viridis", "inferno", "cividis", "jet")
"""Lightness rises evenly along all of them but jet, which is the one of the paper."""
