"""Where a recipe runs: what every kind of step is given, and no plan knows of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from pipeline.recipe import Recipe
from store.catalog import FeatureStore

if TYPE_CHECKING:
    from pipeline.executors import Executor
    from stages.data.registry import SourceSpec
    from stages.data.source import ImageSource

Inputs = dict[str, Any]  # Any: what the steps that are referred to have made


@dataclass(frozen=True)
class Context:
    """Where a recipe runs: none of this is part of a plan.

    Attributes:
        data_root: folder of the data sets.
        device: where networks and heads are trained.
        corrupting, extracting: who does it.
        extracting_device: of its workers.
        recipe: what its report says of it: name, title and about.
        command: that runs it, for its report.
    """

    store: FeatureStore
    data_root: str
    device: str
    corrupting: Executor
    extracting: Executor
    extracting_device: str
    recipe: Recipe
    command: str
    _sources: dict[SourceSpec, SourceSpec] = field(default_factory=dict)

    def source(self, dataset: str, split: str, **options: Any) -> SourceSpec:
        """How to open a data set; ``options`` are fields of ``SourceSpec``."""
        from stages.data.registry import SourceSpec

        return SourceSpec(dataset, split, self.data_root, **options)

    def hashed(self, spec: SourceSpec) -> SourceSpec:
        """The same for plans: opened and hashed once, for a recipe asks for it many times."""
        if spec not in self._sources:
            self._sources[spec] = cast("SourceSpec", _Hashed(spec.open()))
        return self._sources[spec]


class _Hashed:
    """An open source in place of how to open it; its hash is made once."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:  # Any: whatever the source has
        return getattr(self._source, name)

    def open(self) -> _Hashed:
        return self

    def fingerprint(self) -> str:
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return self._source.fingerprint()
