"""The stage prune: accuracy of the last layer after training on a share of the rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.fields import Place, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import EscapeFormulas, FeatureSetName, OutputName
from stages.introspection.head_params import HeadParams
from stages.introspection.heads import check_labels
from stages.introspection.preparation import check_same_network
from stages.out_folder import check_folder
from stages.reflection.feature_plan import FeaturePlan
from store.artifacts import Artifact
from store.featureset import FeatureSet
from store.plan import fingerprint

if TYPE_CHECKING:
    from stages.pruning.pruned import Plan

VERSION = 2
"""Raised whenever an accuracy for the same options changes."""

By = Literal["el2n", "grand", "margin"]
Share = Annotated[float, Field(gt=0, lt=1)]


def _listed(value: Any) -> Any:  # Any: from YAML, JSON or the command line
    """A single value as a list of one."""
    return (value,) if isinstance(value, str | float) else value


class Prune(Stage):
    """Train the last layer on a share of the training rows, kept by a score, and at random.

    The features stay those of f, which was trained on all rows.
    """

    verb = "prune"
    makes = "result"
    examples = ("prune --features cifar10-train@resnet18 --test cifar10-test@resnet18",)

    features: Annotated[FeatureSetName, Field(description="Features of the training rows.")]
    test: Annotated[FeatureSetName, Field(description="Features of the rows to test on.")]
    by: Annotated[Several[By], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ("el2n", "grand", "margin"),
        description="Scores by which rows are kept. el2n: length of the error of f's "
        "probabilities. grand: length of the gradient at the last layer. margin: probability of "
        "the likeliest other class less that of the label.",
    )
    keep: Annotated[Several[Share], BeforeValidator(_listed), Field(min_length=1)] = Field(
        (0.1, 0.3, 0.5, 0.7, 0.9), description="Shares of the rows to keep, between 0 and 1."
    )
    order: Literal["hardest", "easiest"] = Field(
        "hardest", description="Which rows to keep: those with the highest scores, or the lowest."
    )
    epochs: PositiveInt = Field(20, description="Passes over the kept rows.")
    lr: PositiveFloat = Field(0.1, description="Initial learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="Weight decay of SGD.")
    seeds: Annotated[Several[NonNegativeInt], Field(min_length=1)] = Field(
        (0, 1, 2), description="Seeds of the trainings and of the random subsets."
    )
    name: OutputName | None = Field(
        None, description="Name of the result. (default: the name of the features)"
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None,
        description="Folder for a CSV file of the kept rows of every score and share, and of the "
        "random subsets of the first seed, with sample ids and labels.",
    )
    escape_formulas: EscapeFormulas = False

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The trainings.

        Raises:
            InputError: the sets are of different networks, one has no labelled rows or labels of
                other classes, or ``out`` is a file.
        """
        if self.out is not None:
            check_folder(Path(self.out))
        store = workspace.store
        features, test = (store.open(each).require_usable() for each in (self.features, self.test))
        params = self.pruning
        plan = {
            "stage": {
                "name": self.verb,
                "version": VERSION,
                "params": {
                    "by": list(params.by),
                    "keep": list(params.keep),
                    "order": self.order,
                    "training": params.params.to_dict(),
                },
            },
            "inputs": {"features": features.name, "test": test.name},
        }
        stem = f"{features.plan['name']}-pruning"
        plain = f"{stem}-{fingerprint(plan)}"
        name = workspace.output_name("result", self.name, plain, stem, plan)

        def check() -> None:
            from stages.pruning.pruned import Labelled

            check_same_network(features, test, "--test")
            for each in (features, test):
                check_labels(each)
                Labelled.of(each)

        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"prune {features.plan['name']}",
            preview=Preview(f"prune {features.name}: {name}", {"result": name}),
            compute=lambda: self._pruned(features, test),
            check=check,
            copy=self._copied,
        )

    @property
    def pruning(self) -> Plan:
        """What to prune, and how to train."""
        from stages.pruning.pruned import Plan

        params = HeadParams(
            epochs=self.epochs,
            learning_rate=self.lr,
            weight_decay=self.weight_decay,
            seeds=self.seeds,
        )
        shares = tuple(sorted(dict.fromkeys(self.keep)))
        return Plan(tuple(dict.fromkeys(self.by)), shares, self.order, params)

    def _pruned(self, features: FeatureSet, test: FeatureSet) -> Output:
        from pipeline.progress import Progress
        from stages.pruning.pruned import BY_SEED, KEPT, MEANS, Labelled, PruningCard, means, pruned
        from stages.scores.training_value import TRAINING_VALUES
        from stages.versions import versions

        started, plan = time.monotonic(), self.pruning
        training, tested = Labelled.of(features), Labelled.of(test)
        title = f"Pruning of {features.plan['name']}"
        n_rows = plan.n_trainings * len(training)
        with Progress(f"prune {features.plan['name']}", n_rows, unit="rows") as progress:
            by_seed, kept = pruned(training, tested, plan, progress.advance)
        samples = features.samples()
        columns = [name for name in ("sample_id", "label") if name in samples]
        kept = kept.join(samples[columns], on="row")
        files = {BY_SEED: by_seed, MEANS: means(by_seed), KEPT: kept}
        right = tested.logits.argmax(axis=1) == tested.labels
        card = PruningCard(
            title=title,
            features=features.name,
            test=test.name,
            model=FeaturePlan.of(features.plan).model.name,
            rows=len(training),
            tested=len(tested),
            order=self.order,
            epochs=self.epochs,
            seeds=self.seeds,
            test_accuracy=float(right.mean()),
            definitions={
                **{name: TRAINING_VALUES[name].definition for name in plan.by},
                "random": "as many rows, drawn at random for each seed",
                "all": "all rows",
                "gain": "mean over seeds of the accuracy less that of the random subset",
            },
            versions=versions(),
            seconds=round(time.monotonic() - started, 1),
        )
        return {name: frame.to_parquet(index=False) for name, frame in files.items()}, asdict(card)

    def _copied(self, result: Artifact) -> Sequence[Path]:
        from stages.csv_text import csv_of
        from stages.pruning.pruned import KEPT

        if self.out is None:
            return []
        folder = Path(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for (score, share), rows in result.read_frame(KEPT).groupby(["score", "keep"], sort=False):
            path = folder / f"{score}-{share:g}.csv"
            text = csv_of(
                rows.drop(columns=["score", "keep"]), escape_formulas=self.escape_formulas
            )
            path.write_text(text, "utf-8")
            written.append(path)
        return written
