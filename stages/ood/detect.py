"""The step `ood` of recipes: two feature sets compared by one detector, with f and with heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.fields import OneOf
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.opened import opened
from stages.data.option_types import FeatureSetName, Resamples
from stages.data.registry import DEFAULT_IMAGE_SIZE
from stages.data.resize import Resize
from stages.introspection.contenders import Contender, contenders_of, planned_heads
from stages.introspection.heads import Heads
from stages.ood.comparable import check_shapes_of
from stages.ood.overlap import check_apart
from stages.ood.sides import Sides, check_heads, check_sides, plan_of
from stages.reflection.extract import Extract
from stages.scores.known_scores import DETECTORS
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from stages.ood.scoreboard import Scoreboard

VERSION = 1
_INPUT = Resize((DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)).in_layout(stretches=False)
"""How images are compared before there is a model."""

DetectorName = Annotated[str, OneOf(tuple(DETECTORS))]
Rows = Annotated[
    int,
    Field(ge=2, description="Maximum number of rows of each set to compare, drawn with the seed."),
]
DEFAULT_ROWS = 10_000


class Detect(Stage):
    """Distinguish two feature sets by one detector, with f and with heads.

    The command `ood` makes these for many data sets and detectors.
    """

    verb = "detect"
    makes = "result"

    features: Annotated[FeatureSetName, Field(description="Features of in-distribution images.")]
    against: Annotated[FeatureSetName, Field(description="Features of other images.")]
    training: FeatureSetName | None = Field(
        None, description="Features of the training images, for detectors that are fitted."
    )
    odin_features: FeatureSetName | None = Field(
        None, description="Features of in-distribution images perturbed by ODIN."
    )
    odin_against: FeatureSetName | None = Field(
        None, description="Features of other images perturbed by ODIN."
    )
    detector: DetectorName = Field("msp", description="Detector that scores the rows.")
    heads: Heads = None
    rows: Rows = DEFAULT_ROWS
    resamples: Resamples = 1000
    seed: NonNegativeInt = Field(0, description="Seed of rows and bootstrap.")

    @model_validator(mode="after")
    def _has_its_sets(self) -> Self:
        detector = DETECTORS[self.detector]
        if detector.is_perturbed and not (self.odin_features and self.odin_against):
            raise ValueError(
                f"{self.detector}: expected 'odin_features' and 'odin_against' (perturbed images)"
            )
        if detector.fit is not None and self.training is None:
            raise ValueError(f"{self.detector}: expected 'training', features that it is fitted on")
        return self

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:
        """Raise ``InputError`` if the sets share images.

        The images of a corrupted set, which may not exist yet, are not checked.
        """
        sources = [
            replace(each.source(workspace), image_size=_INPUT)
            for key, each in needs.items()
            if key in ("features", "against") and isinstance(each, Extract) and each.dataset
        ]
        if len(sources) == 2:
            inside, outside = (opened(workspace, each) for each in sources)
            key = ("apart", *sources)  # the same for each detector and network
            workspace.once(key, lambda: check_apart(inside, [outside]))

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The comparison.

        Raises:
            InputError: the sets belong to several networks or do not fit the detector, or labels of
            heads clash.
        """
        store, detector = workspace.store, DETECTORS[self.detector]
        names = [self.features, self.against]
        if detector.is_perturbed:
            names = [self.odin_features or "", self.odin_against or ""]
        if detector.fit is not None:
            names.append(self.training or "")
        sets = [store.open(name) for name in names]
        sides = Sides(*sets)
        job = self.job_of(store, sides, contenders_of(store, sides.inside, self.heads))

        def check() -> None:
            job.check()
            check_shapes_of(workspace, sets[0], sets[1])

        return replace(job, check=check)

    def job_of(
        self,
        store: FeatureStore,
        sides: Sides,
        contenders: Sequence[Contender],
        shared: Callable[[], Scoreboard] | None = None,
        group: str | None = None,
    ) -> ArtifactJob:
        """Like the job of a stage, for sets that need not exist before it runs.

        Args:
            store: store of the sets.
            sides: the sets.
            contenders: heads to compare with f.
            shared: scores that other comparisons use as well. (default: its own)
            group: group of the other images, which the card records.
        """
        check_sides(sides, contenders, self.detector)
        plan, outside = self.plan(sides, contenders), plan_of(sides.outside).source.name
        name = f"{sides.inside.plan['name']}-against-{outside}-{self.detector}"
        result = store.artifact("result", f"{name}-{fingerprint(plan)}")

        def check() -> None:
            for each in sides.opened(store).all:
                if isinstance(each, FeatureSet):
                    each.require_usable()
            check_heads(store, sides, contenders, [self.detector])

        def compute() -> Output:
            from stages.ood.detection_result import Comparison, detected

            how = Comparison(self.detector, self.rows, self.resamples, self.seed, group)
            board = (
                shared() if shared else self.scoreboard(store, [(self.detector, sides)], contenders)
            )
            return detected(sides.opened(store), contenders, how, board)

        return ArtifactJob(
            store,
            result,
            plan,
            title=f"detect {sides.name} by {self.detector}",
            preview=Preview(f"compare {sides.name} by {self.detector}", {"result": result.name}),
            compute=compute,
            check=check,
        )

    def scoreboard(
        self,
        store: FeatureStore,
        compared: Sequence[tuple[str, Sides]],
        contenders: Sequence[Contender],
    ) -> Scoreboard:
        """The scores of sides by detectors, which must exist by now."""
        from stages.ood.scoreboard import Scoreboard, compared_sets

        sets = compared_sets([(name, sides.opened(store)) for name, sides in compared])
        return Scoreboard(store, contenders, sets, self.rows, self.seed)

    def plan(self, sides: Sides, contenders: Sequence[Contender]) -> Plan:
        """Everything that determines the result."""
        params = {
            "detector": self.detector,
            "rows": self.rows,
            "seed": self.seed,
            "n_resamples": self.resamples,
        }
        return {
            "stage": {"name": "ood", "version": VERSION, "params": params},
            "inputs": {
                "features": [each.plan for each in sides.all],
                "heads": planned_heads(contenders),
            },
        }
