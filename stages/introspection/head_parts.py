"""The parts that heads read, their names joined by +, and the arrays that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from stages.errors import InputError
from stages.reflection.feature_plan import FeaturePlan
from stages.reflection.named_layer import ARRAY as GRADIENTS
from stages.sensing.map_layers import STATISTICS, MapLayer
from store.featureset import FeatureSet
from store.plan import Plan

REFLECTION = "reflection"
PARTS = (REFLECTION, "features", "logits", STATISTICS, GRADIENTS)
"""In the order of a head's input."""

SEPARATOR = "+"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class StoredGradients:
    """Gradients of another layer that a feature set holds; see ``NamedLayer``.

    Attributes:
        columns: numbers of a row.
    """

    layer: str
    loss: str
    size: int | None
    columns: int


@dataclass(frozen=True, slots=True)
class FurtherArrays:
    """What a head reads of a feature set besides features and logits; nothing by default.

    Attributes:
        statistics: layers whose statistics it reads, all of those in the array.
        gradients: gradients of another layer.
    """

    statistics: tuple[MapLayer, ...] = ()
    gradients: StoredGradients | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        read = {STATISTICS: self.statistics, GRADIENTS: self.gradients}
        return tuple(name for name, facts in read.items() if facts)

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of a row of each array."""
        n_statistics = 2 * sum(each.channels for each in self.statistics)
        n_gradients = self.gradients.columns if self.gradients else 0
        return {STATISTICS: n_statistics, GRADIENTS: n_gradients}

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form, without what is not read, so that plans of other heads stay the same."""
        return {key: value for key, value in asdict(self).items() if value}

    def read(self, feature_set: FeatureSet, rows: Any) -> dict[str, NDArray[Any]]:  # Any: an index
        """The arrays of some rows of a feature set, in memory."""
        return {name: feature_set.read(name)[rows] for name in self.names}

    def check(self, plan: Plan, head: str, name: str) -> None:
        """Raise ``InputError`` if a feature set lacks what a head reads, or has other layers'."""
        stored = FeaturePlan.of(plan)
        if self.statistics and self.statistics != stored.statistics:
            layers = ",".join(each.layer for each in self.statistics)
            own = ",".join(each.layer for each in stored.statistics) or "no layer"
            raise InputError(
                f"head '{head}' reads statistics of {layers}, {name} has those of {own}: extract "
                f"it with --statistics {layers}"
            )
        if self.gradients and asdict(self.gradients) != _gradients_in(stored, self.gradients):
            ours, theirs = self.gradients, stored.gradients or {"layer": "no layer"}
            size = f" --project {ours.size}" if ours.size else ""
            raise InputError(
                f"head '{head}' reads gradients of {ours.layer}, {name} has those of "
                f"{theirs['layer']}: extract it with --layer {ours.layer} --layer-loss "
                f"{ours.loss}{size}"
            )


def _gradients_in(stored: FeaturePlan, like: StoredGradients) -> dict[str, Any]:
    return {**(stored.gradients or {}), "columns": like.columns}


def further_arrays(feature_set: FeatureSet, reads: str) -> FurtherArrays:
    """The further arrays of a feature set that the parts ``reads`` name.

    Raises:
        InputError: the set lacks one of them.
    """
    parts, stored = reads.split(SEPARATOR), FeaturePlan.of(feature_set.plan)
    ways = {STATISTICS: "--statistics auto", GRADIENTS: "--layer LAYER --project 512"}
    found = {STATISTICS: stored.statistics, GRADIENTS: stored.gradients}
    for name, way in ways.items():
        if name in parts and not found[name]:
            raise InputError(
                f"reads {reads}: {feature_set.name} has no array {name}; extract it with {way}"
            )
    gradients = None
    if GRADIENTS in parts and stored.gradients:
        (columns,) = feature_set.schema.array(GRADIENTS).row_shape
        gradients = StoredGradients(**stored.gradients, columns=columns)
    return FurtherArrays(stored.statistics if STATISTICS in parts else (), gradients)


def canonical_reads(text: str) -> str:
    """The same parts in the order of `PARTS`.

    >>> canonical_reads("statistics+reflection")
    'reflection+statistics'

    Raises:
        ValueError: a part is unknown, or named twice.
    """
    parts = text.split(SEPARATOR)
    if set(parts) - set(PARTS) or len(set(parts)) < len(parts):
        raise ValueError(
            f"expected some of {', '.join(PARTS)}, each once and joined by {SEPARATOR}"
        )
    return SEPARATOR.join(part for part in PARTS if part in parts)
