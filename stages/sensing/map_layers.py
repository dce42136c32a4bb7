"""Layers whose feature maps are summarised in a feature set; does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.schema import ArraySpec

STATISTICS = "statistics"
"""Array of a feature set, and field of its plan: see `MapLayer`."""


@dataclass(frozen=True, slots=True)
class MapLayer:
    """A layer whose output has places: its name in ``network.named_modules()``, its channels.

    In the array, each layer has ``2 * channels`` columns: the means, then the deviations.
    """

    layer: str
    channels: int


def statistics_spec(layers: Sequence[MapLayer]) -> ArraySpec:
    """The array that stores the statistics of some layers: ``[rows, columns]`` float32."""
    n_columns = 2 * sum(each.channels for each in layers)
    return ArraySpec(STATISTICS, (n_columns,), "float32", ("statistic",))
