"""The stage evaluate: f beside heads over a data set, averaged as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, model_validator

from pipeline.fields import LabelledList, Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.progress import Progress
from pipeline.stage import Preview, Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, Resamples
from stages.errors import InputError
from stages.introspection.contenders import (
    Contender,
    check_labels,
    contenders_of,
    planned_heads,
)
from stages.introspection.heads import Heads
from stages.judging.beside import Beside, check_beside, matched_rows, name_beside
from stages.judging.judged_sets import check_judged
from stages.metrics.definitions import REFERENCE
from stages.metrics.sums import N_BINS
from stages.reflection.groups import cell_columns, check_columns
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.shards import Shard

VERSION = 2


class Evaluate(Stage):
    """Compare f with heads: accuracy and calibration by (corruption, severity), and averaged.

    All seeds of a head are evaluated. An existing result is read, not recomputed. With --beside, f
    and heads on another extraction of the same images are compared with f on the first one.
    """

    verb = "evaluate"
    makes = "result"
    examples = (
        "evaluate --features cifar10c@resnet18",
        "evaluate --features cifar10c@resnet18 --head H=resnet18-h "
        "--beside cifar10c+batch-125-test@resnet18 --beside-head 'H, batches=resnet18-h-batch'",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set of the store.")]
    heads: Heads = None
    beside: FeatureSetName | None = Field(
        None,
        description="Second feature set of the same images, such as one with --batch-statistics "
        "or of another network; its rows may be in another order. Its f and --beside-head are also "
        "compared with f of --features.",
    )
    beside_label: Annotated[str, Written(metavar="LABEL")] = Field(
        "", description="Label of f on the features of --beside. (default: 'f on' and their name)"
    )
    beside_heads: Annotated[
        LabelledList,
        Ref(("head",), taken_labels=(REFERENCE,)),
        Written("--beside-head", "[LABEL=]NAME", is_repeated=True),
    ] = Field(
        (),
        description="Head to evaluate on the features of --beside, as [LABEL=]NAME; may be "
        "repeated.",
    )
    by: Several[str] = Field(
        (),
        description="Sample columns, separated by commas, whose values define the cells that "
        "metrics are averaged over, such as label for the accuracy of each class. (default: "
        "corruption and severity, if the set has them)",
    )
    resamples: Resamples = 1000
    seed: NonNegativeInt = Field(0, description="Seed of the bootstrap.")
    present_classes: bool = Field(
        False,
        description="Also evaluate each predictor over only the classes that occur among the "
        "labels, such as 200 of 1,000 in ImageNet-A.",
    )

    @model_validator(mode="after")
    def _has_a_set_beside(self) -> Self:
        if self.beside is None and (self.beside_label or self.beside_heads):
            raise ValueError("--beside-label and --beside-head need --beside: add it")
        return self

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The comparison.

        The average is the plain mean over the cells of each cell's metric, the paper's "averaged
        across 19 distortions and 5 levels" (Table 5).

        Raises:
            InputError: labels clash, a head belongs to another network or was trained on images
            that were prepared differently, a column does not exist, no row has a label, or the set
            beside has other samples or classes.
        """
        store = workspace.store
        feature_set = store.open(self.features)
        feature_set.require_complete()
        cells = self._columns(feature_set) or cell_columns(feature_set)
        contenders = contenders_of(store, feature_set, self.heads)
        beside = self._beside(store, feature_set)
        plan, title = self.plan(feature_set, contenders, beside), feature_set.plan["name"]
        result = store.artifact("result", f"{title}-{fingerprint(plan)}")

        @cache
        def matched() -> tuple[Beside, NDArray[np.int64]] | None:
            if beside is None:
                return None
            return beside, matched_rows(feature_set, beside.feature_set, cells)

        def check() -> None:
            self._check(store, feature_set, contenders, beside)
            matched()

        def compute() -> Output:
            from stages.evaluation.evaluation import evaluated
            from stages.metrics.bootstrap import Resampling

            n_rows = feature_set.n_rows * (1 if beside is None else 2)
            with Progress(f"evaluate {title}", n_rows, unit="rows") as progress:
                return evaluated(
                    store,
                    feature_set,
                    contenders,
                    beside=matched(),
                    cells=cells,
                    classes=classes_in(feature_set) if self.present_classes else None,
                    resampling=Resampling(self.resamples, self.seed),
                    tick=progress.advance,
                )

        labels = ", ".join([REFERENCE, *(each.label for each in contenders)])
        what = f"evaluate {labels} on {feature_set.name}"
        if beside is not None:
            what += f", and {', '.join(beside.labels)} on {beside.feature_set.name}"
        return ArtifactJob(
            store,
            result,
            plan,
            title=f"evaluate {title}",
            preview=Preview(f"{what}: {result.name}", {"result": result.name}),
            compute=compute,
            check=check,
        )

    def plan(
        self,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        beside: Beside | None = None,
    ) -> Plan:
        """Everything that determines the result; the seed counts only with resamples.

        Columns and a set beside are only recorded if they are given, so that older plans remain
        valid. The heads of that set follow the others; the parameter ``beside`` has its labels.

        Heads are recorded with their plan and the checksums of their files, because training the
        same plan again gives other weights. Raises ``NotFoundError`` if a head is not finished.
        """
        inputs: Plan = {"features": feature_set.plan, "heads": planned_heads(contenders)}
        if beside is not None:
            heads = [*contenders, *beside.contenders]
            both = [feature_set.plan, beside.feature_set.plan]
            inputs = {"features": both, "heads": planned_heads(heads)}
        bootstrap = {"n_resamples": self.resamples, "seed": self.seed if self.resamples else 0}
        return {
            "stage": {
                "name": self.verb,
                "version": VERSION,
                "params": {
                    "n_bins": N_BINS,
                    "bootstrap": bootstrap,
                    **({"by": list(by)} if (by := self._columns(feature_set)) else {}),
                    **({"present_classes": True} if self.present_classes else {}),
                    **({} if beside is None else {"beside": beside.labels}),
                },
            },
            "inputs": inputs,
        }

    def _beside(self, store: FeatureStore, feature_set: FeatureSet) -> Beside | None:
        """The set beside, with its heads; ``None`` without one."""
        if self.beside is None:
            return None
        other = store.open(self.beside)
        other.require_complete()
        label = self.beside_label or f"{REFERENCE} on {name_beside(feature_set, other)}"
        return Beside(other, label, contenders_of(store, other, self.beside_heads))

    def _columns(self, feature_set: FeatureSet) -> tuple[str, ...]:
        """The sample columns of ``by``; ``class`` is the label by name.

        Raises ``InputError`` if one does not exist, or is named twice.
        """
        from stages.evaluation.recognition import stored_column

        by = tuple(stored_column(feature_set, name) for name in self.by)
        check_columns(self.verb, [feature_set], by)
        if len(set(by)) < len(by):
            raise InputError(f"evaluate: --by {','.join(self.by)} names a column twice")
        return by

    def _check(
        self,
        store: FeatureStore,
        feature_set: FeatureSet,
        contenders: Sequence[Contender],
        beside: Beside | None,
    ) -> None:
        """Raise ``InputError`` if labels clash, heads do not fit, or classes are missing."""
        from stages.evaluation.evaluation import label_over

        check_judged(store, feature_set, contenders, "evaluate", reads_further=True)
        if beside is not None:
            check_beside(store, feature_set, contenders, beside)
        if not self.present_classes:
            return
        (n_classes,) = feature_set.schema.array("logits").row_shape
        n_present = len(classes_in(feature_set))
        if n_present == n_classes:
            raise InputError(
                f"evaluate {feature_set.name}: all {n_classes} classes occur among its labels: "
                "omit --present-classes"
            )
        labels = [REFERENCE, *(each.label for each in contenders)]
        labels += [] if beside is None else beside.labels
        check_labels([*labels, *(label_over(label, n_present) for label in labels)])


def classes_in(feature_set: FeatureSet) -> NDArray[np.int64]:
    """The classes that occur among the labels, sorted; int64."""
    labels = (np.unique(_labels(feature_set, each)) for each in feature_set.shard_set.shards)
    found: NDArray[np.int64] = np.unique(np.concatenate([*labels]))
    return found[found >= 0]


def _labels(feature_set: FeatureSet, shard: Shard) -> NDArray[np.int64]:
    samples = feature_set.read_samples(shard, ("label",))
    return np.asarray(samples["label"], np.int64)
