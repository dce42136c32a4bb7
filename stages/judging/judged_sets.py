"""Shared by the stages that judge predictors: several feature sets, and what must fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.artifact_jobs import ArtifactJobs
from pipeline.fields import Written
from pipeline.make import ArtifactJob
from pipeline.stage import Distinct
from stages.data.option_types import FeatureSetName
from stages.introspection.contenders import Contender, check_contenders
from stages.introspection.heads import check_labelled
from stages.introspection.preparation import check_preparation
from store.catalog import FeatureStore
from store.featureset import FeatureSet

Also = Annotated[
    Distinct[FeatureSetName],
    Written("--also", "LIST", is_command_only=True),
    Field(
        description="Other feature sets to judge, separated by commas, such as corrupted or "
        "rotated images. Each has its own result, and one page shows all of them."
    ),
]


def jobs_of(
    names: Sequence[str], job_of: Callable[[str], ArtifactJob]
) -> ArtifactJob | ArtifactJobs:
    """The result of one feature set, or those of several; all are checked before any is made."""
    jobs = {each.output_name: each for each in map(job_of, names)}
    if len(jobs) == 1:
        return next(iter(jobs.values()))

    def check() -> None:
        for each in jobs.values():
            each.refuse()

    return ArtifactJobs(list(jobs.values()), check=check)


def check_judged(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    what: str,
    *,
    reads_further: bool = False,
) -> None:
    """Check that predictors can be judged on rows.

    Args:
        store: store of the rows.
        feature_set: the rows, some of which have a label.
        contenders: heads that fit, with distinct labels.
        what: the command, for messages.
        reads_further: whether the command reads more than features and logits for heads.

    Raises:
        InputError, FailedRowsError: they cannot.
    """
    check_contenders(contenders)
    check_labelled(feature_set, what)
    for each in contenders:
        check_preparation(store, feature_set, each.head, reads_further=reads_further)
    feature_set.require_usable()
