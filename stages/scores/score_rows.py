"""The stage score: scores of single rows as columns of the store."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from pipeline.fields import LabelledList, Ref, Written
from pipeline.make import ShardJob
from pipeline.stage import Distinct, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.metrics.definitions import REFERENCE


class ScoreRows(Stage):
    """Write scores of f and of heads to the store as Parquet columns, one row per sample.

    The columns are those of `query --score` and `export --scores`: energy, knn, H_energy. pandas,
    Polars and DuckDB join them to the samples by sample_id or row. No image goes through a network.
    Running the command again computes only shards that are missing, or whose features or
    training rows were recomputed since.
    """

    verb = "score"
    makes = "scores"
    runs_with = ("executor", "workers", "memory", "address")
    examples = (
        "score --features cifar10c@resnet18 --score energy,exgrad --head H=resnet18-h",
        "score --features cifar10c@resnet18 --score knn,vim --training cifar10-train@resnet18",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set whose rows are scored.")]
    scores: Annotated[Distinct[str], Field(min_length=1), Written("--score", "LIST")] = Field(
        description="Scores, separated by commas: energy, exgrad, msp, knn, ...",
    )
    heads: Annotated[
        LabelledList,
        Ref(("head",), taken_labels=(REFERENCE,)),
        Written("--head", "[LABEL=]NAME", is_repeated=True),
    ] = Field(
        (),
        description="Head to score as well, as [LABEL=]NAME, in columns LABEL_SCORE; may be "
        "repeated. The first of its seeds is used.",
    )
    training: FeatureSetName | None = Field(
        None, description="Features of the training images, for scores that are fitted to them."
    )
    name: OutputName | None = Field(
        None, description="Name of the scores. (default: the name of the features)"
    )

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an unknown score, and for missing or unused training rows."""
        from stages.scores.asked_scores import check_asked

        del options
        check_asked(self.scores, self.training)

    def job(self, workspace: Workspace) -> ShardJob:
        """The scores of all shards.

        Raises:
            InputError: a score is unknown, a head does not belong to the network, or the features
                have too many failed rows.
        """
        from stages.scores.row_scores import row_scores, row_scores_job

        store = workspace.store
        feature_set = store.open(self.features).require_usable()
        scoring = row_scores(store, feature_set, self.scores, self.heads, self.training)
        executor, _ = workspace.workers(n_single_threaded=1)
        return row_scores_job(scoring, executor, self.name)
