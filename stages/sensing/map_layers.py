"""Layers whose feature maps are summarised in a feature set; does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

STATISTICS = "statistics"
"""Array of a feature set, and field of its plan: see `MapLayer`."""


@dataclass(frozen=True, slots=True)
class MapLayer:
    """A layer whose output has places: its name in ``network.named_modules()``, its channels.

    In the array, each layer has ``2 * channels`` columns: the means, then the deviations.
    """

    layer: str
    channels: int
