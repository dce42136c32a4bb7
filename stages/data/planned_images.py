"""Find the images of a feature set again, from what its plan says about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.workspace import Workspace
from stages.data.altering import planned_alteration
from stages.data.corruptions.cells import cells_of
from stages.data.opened import facts_of, opened
from stages.data.picked import Sample
from stages.data.planned_source import PlannedSource, planned_source
from stages.data.registry import SourceSpec
from stages.data.source import check_planned
from stages.errors import DataNotFoundError, InputError
from store.featureset import FeatureSet
from store.plan import differences


def planned_images(
    workspace: Workspace,
    planned: Mapping[str, Any],  # Any: JSON
    dataset: str | None,
    corruptions: Callable[[], tuple[str, ...]] = tuple,
) -> SourceSpec:
    """How to open the images that a plan describes.

    Args:
        workspace: where data sets are.
        planned: facts of the source in the plan.
        dataset: name or path of the data set; by default its name in the plan.
        corruptions: returns those of a corrupted set that were used; called if not all of its rows
            were.

    Raises:
        DataNotFoundError: the data set is not found.
        InputError: it is another one, or has changed.
    """
    facts = planned_source(planned)
    try:
        for spec in _specs(workspace, facts, dataset, corruptions):
            if not any(differences(facts_of(workspace, spec), planned)):
                return spec
    except DataNotFoundError as error:
        if dataset is not None:
            raise
        raise DataNotFoundError(f"{error}; name the images with --dataset") from error
    check_planned(opened(workspace, spec), planned)
    raise InputError(f"{facts.name}: is not the data set of the plan")


def images_of_features(
    workspace: Workspace, feature_set: FeatureSet, dataset: str | None
) -> SourceSpec:
    """How to open the images of a feature set; see `planned_images`."""
    return planned_images(
        workspace,
        feature_set.plan["inputs"]["source"],
        dataset,
        lambda: tuple(sorted(set(feature_set.samples()["corruption"]))),
    )


def _specs(
    workspace: Workspace,
    planned: PlannedSource,
    dataset: str | None,
    corruptions: Callable[[], tuple[str, ...]],
) -> Iterator[SourceSpec]:
    """Ways to open the source, the most likely one first."""
    name, n_rows = planned.clean
    stored = SourceSpec(
        dataset or name, planned.split, workspace.data_root, planned.resizing, n_rows
    )
    spec = changed_as(planned, stored)
    yield from _in_order(workspace, spec, planned)
    columns = [name for name, _ in opened(workspace, spec).extra_columns]
    if planned.corruption is None and "corruption" in columns:
        yield from _in_order(workspace, replace(spec, corruptions=corruptions()), planned)


def changed_as(planned: PlannedSource, stored: SourceSpec) -> SourceSpec:
    """The images of a plan: stored ones, drawn, corrupted, denoised and augmented as it records.

    Raises:
        InputError: the plan has an unknown corruption or filter.
    """
    corruption, sample, (_, n_rows) = planned.corruption, planned.sample, planned.clean
    return replace(
        stored,
        limit=stored.limit if sample is None else sample.of,
        labels=bool(planned.class_names),
        cells=None if corruption is None else cells_of(corruption.cells, corruption.seed),
        sample=None if sample is None else Sample(n_rows, sample.seed, sample.shuffled),
        alteration=planned_alteration(planned.alteration),
    )


def _in_order(
    workspace: Workspace, spec: SourceSpec, planned: PlannedSource
) -> Iterator[SourceSpec]:
    """The source, and the same with the classes in the order of the plan, which may be named."""
    yield spec
    names = planned.class_names or ()
    if names not in ((), opened(workspace, spec).class_names):
        yield replace(spec, classes=names)
