"""Layers whose feature maps are summarised in a feature set; does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.schema import ArraySpec

STATISTICS = "statistics"
"""Array of a feature set, and field of its plan: see `MapLayer`."""


@dataclass(frozen=True, slots=True)
class MapLayer:
    """A layer that returns a feature map: name in ``network.named_modules()``, number of channels.

    In the array, each layer has ``2 * channels`` columns: means, then standard deviations.
    """

    layer: str
    channels: int


def statistics_spec(layers: Sequence[MapLayer]) -> ArraySpec:
    """Specification of the array of the statistics of layers: ``[rows, columns]`` float32."""
    n_columns = 2 * sum(each.channels for each in layers)
    return ArraySpec(STATISTICS, (n_columns,), "float32", ("statistic",))
