"""The stage ood: compares images of other data sets with one, with several detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.artifact_jobs import ArtifactJobs, is_stored
from pipeline.fields import Labelled, OneOf, Place, Written
from pipeline.make import ArtifactJob, ShardJob
from pipeline.stage import Several, Stage
from pipeline.workspace import Workspace
from stages.data.opened import opened
from stages.data.option_types import ClassNames, ModelName, Resamples, Split
from stages.data.source import ImageSource
from stages.data.source_notes import left_out_notes
from stages.errors import DataNotFoundError, InputError
from stages.introspection.contenders import Contender, contenders_of
from stages.introspection.heads import Heads
from stages.ood.comparable import check_comparable
from stages.ood.detect import DEFAULT_ROWS, Detect, Rows
from stages.ood.sides import Planned, Sides, check_heads
from stages.reflection.extract import Extract
from stages.reflection.extract_options import (
    N_PGD_STEPS,
    PGD_STEP,
    Epsilon,
    Pixels,
    Rounding,
    Step,
    Steps,
)
from stages.reflection.feature_plan import planned_model
from stages.scores.known_scores import DETECTORS
from stages.sensing.card import Precision
from store.catalog import FeatureStore

if TYPE_CHECKING:
    from stages.ood.scoreboard import Scoreboard

DEFAULT_DETECTORS = ("msp", "odin", "energy", "max-logit", "gradnorm")
FITTED = tuple(name for name, each in DETECTORS.items() if each.fit is not None)


DetectorOrAll = Annotated[str, OneOf((*DETECTORS, "all"))]


class Ood(Stage):
    """Detect images of other data sets from stored features, with f and with heads.

    Missing features are extracted first, once for all detectors and heads, of no more rows of the
    other data sets than --rows; ODIN and attacks have separate features. Existing results are
    read, not recomputed.
    """

    verb = "ood"
    makes = "result"
    runs_with = ("data_root", "executor", "gpus", "workers", "memory", "address", "device")
    examples = (
        "ood --in cifar10 --out svhn,textures,places365",
        "ood --in cifar10 --near ./cifar100 --far svhn,textures --detector msp,knn,vim",
        "ood --in cifar10 --out svhn --detector msp,odin --attack f",
    )

    inside: Annotated[str, Place.DATA, Written("--in", "DATA")] = Field(
        description="In-distribution data set. Detectors that are fitted also need its train split."
    )
    split: Split = "test"
    outside: Annotated[Several[str], Place.DATA, Written("--out", "LIST")] = Field(
        (),
        description="Other data sets, separated by commas: svhn, svhn-10k, textures, places365, "
        "lsun-c, lsun-r, isun, patches, uniform-noise, gaussian-noise, any other, or a folder.",
    )
    near: Annotated[Several[str], Place.DATA, Written("--near", "LIST")] = Field(
        (),
        description="Other data sets that resemble the first one, as in OpenOOD: compared as those "
        "of --out, and averaged as a group.",
    )
    far: Annotated[Several[str], Place.DATA, Written("--far", "LIST")] = Field(
        (), description="Other data sets that do not resemble it, averaged as a group."
    )
    detectors: Annotated[
        Several[DetectorOrAll], Field(min_length=1), Written("--detector", "LIST")
    ] = Field(
        DEFAULT_DETECTORS,
        description=f"Detectors, separated by commas: {', '.join(DETECTORS)}; or all. "
        f"Those that also need features of the training images: {', '.join(FITTED)}.",
    )
    model: ModelName | None = Field(
        None, description="Model of the store. (default: the one trained for this data set)"
    )
    heads: Heads = None
    attack: Literal["none", "f", "h"] = Field(
        "none",
        description="Attack on both sides. none. f: PGD through f, as in the paper. h: PGD through "
        "the first head.",
    )
    epsilon: Epsilon = PGD_STEP
    step: Step = PGD_STEP
    steps: Steps = N_PGD_STEPS
    rounding: Rounding = "exact"
    odin_epsilon: Pixels = Field(0.0014, description="Step size of ODIN, for pixels in [0, 1].")
    rows: Rows = DEFAULT_ROWS
    resamples: Resamples = 1000
    seed: NonNegativeInt = Field(0, description="Seed of rows, attack and bootstrap.")
    classes: ClassNames = ()
    precision: Precision = Field(
        "fp32", description="Precision of features that are extracted here: fp32 or bf16."
    )

    @model_validator(mode="after")
    def _has_another_set(self) -> Self:
        if not self.groups:
            raise ValueError("ood: expected at least one out-of-distribution set, found none")
        return self

    @property
    def groups(self) -> list[tuple[str, str | None]]:
        """Each other set, and its group: near, far or None."""
        given = ((self.outside, None), (self.near, "near"), (self.far, "far"))
        return [(name, group) for names, group in given for name in names]

    def job(self, workspace: Workspace) -> ArtifactJobs:
        """One result per set and detector, and the missing features that they need.

        Raises:
            InputError, DataNotFoundError: a data set, model or head is missing or does not fit.
        """
        store = workspace.store
        inside = Extract(
            dataset=self.inside,
            split=self.split,
            model=self.model,
            classes=self.classes,
            precision=self.precision,
        )
        plain = _features(workspace, inside)
        model = planned_model(plain.plan)
        samples = self._samples(model.name)
        outsides = [_stored_or_sampled(workspace, each) for each in samples]
        sources = [
            opened(workspace, replace(each.source(workspace), image_size=model.input))
            for each in (inside, *outsides)
        ]
        _check_distinct(sources[1:])
        contenders, notes = self._contenders(store, Planned(plain.plan))
        notes += [
            line
            for each in sources[1:]
            for line in left_out_notes(f"{each.name} {each.split}", each.left_out)
        ]
        comparisons: list[Comparison] = []

        @cache
        def shared() -> Scoreboard:
            new = [each for each in comparisons if not each.result.output.is_complete()]
            pairs = [(each.stage.detector, each.sides) for each in new]
            return new[0].stage.scoreboard(store, pairs, contenders)

        comparisons += [
            self._comparison(workspace, (inside, outside), group, name, contenders, shared)
            for outside, (_, group) in zip(samples, self.groups, strict=True)
            for name in (DETECTORS if "all" in self.detectors else dict.fromkeys(self.detectors))
        ]

        def check() -> None:
            missing = [each for each in comparisons if not each.result.output.is_complete()]
            new, asked = [each.sides for each in missing], [each.stage.detector for each in missing]
            for sides in {each.inside.name: each for each in new}.values():
                check_heads(store, sides, contenders, asked)
            check_comparable(sources[0], sources[1:])

        needed = {each.result.output_name: each.features for each in comparisons}
        return ArtifactJobs(
            [each.result for each in comparisons],
            lambda missing: [job for each in missing for job in needed[each.output_name]],
            check,
            "detect",
            (*plain.preview.notes, *notes),
        )

    def _samples(self, model: str) -> list[Extract]:
        """The extractions of as many rows of each set of other images as are compared."""
        return [
            Extract(
                dataset=each,
                model=model,
                precision=self.precision,
                out_of_distribution=True,
                sample=self.rows,
                sample_seed=self.seed,
            )
            for each, _ in self.groups
        ]

    def _contenders(
        self, store: FeatureStore, features: Planned
    ) -> tuple[list[Contender], list[str]]:
        """The heads (none if the model has none and none was named), and notes on them."""
        try:
            return contenders_of(store, features, self.heads), []
        except DataNotFoundError as error:
            if self.heads is not None:
                raise
            return [], [f"f alone: {error}"]

    def _comparison(
        self,
        workspace: Workspace,
        plain: tuple[Extract, Extract],
        group: str | None,
        name: str,
        contenders: Sequence[Contender],
        shared: Callable[[], Scoreboard],
    ) -> Comparison:
        """The result of one detector, on images that may be attacked, and perturbed by ODIN."""
        detector, stages = DETECTORS[name], [*plain]
        changes = self._attack(contenders)
        for at, change in enumerate(changes):
            odin = {"odin": self.odin_epsilon} if detector.is_perturbed else {}
            stages[at] = plain[at].model_copy(update={**change, **odin})
        if detector.fit is not None:
            stages.append(plain[0].model_copy(update={"split": "train"}))
        features = [_features(workspace, _stored_or_sampled(workspace, each)) for each in stages]
        inside, outside = (each.output_name for each in features[:2])
        stage = Detect(
            features=inside,
            against=outside,
            odin_features=inside,
            odin_against=outside,
            training=features[-1].output_name if detector.fit else None,
            detector=name,
            heads=tuple(Labelled(label=each.label, name=each.head.name) for each in contenders),
            rows=self.rows,
            resamples=self.resamples,
            seed=self.seed,
        )
        sides = Sides(*(Planned(each.plan) for each in features))
        job = stage.job_of(workspace.store, sides, contenders, shared, group)
        return Comparison(stage, job, sides, features)

    def _attack(self, contenders: Sequence[Contender]) -> list[dict[str, object]]:
        """Fields of the two extractions; in-distribution images are attacked towards uniform
        predictions."""
        if self.attack == "none":
            return [{}, {}]
        if self.attack == "h" and not contenders:
            raise InputError("--attack h: expected a head to attack, found none; name a --head")
        how = {
            "through": contenders[0].head.name if self.attack == "h" else None,
            "epsilon": self.epsilon,
            "step": self.step,
            "steps": self.steps,
            "rounding": self.rounding,
            "attack_seed": self.seed,
        }
        return [{"attack": toward, **how} for toward in ("uniform", "confident")]


def _features(workspace: Workspace, stage: Extract) -> ShardJob:
    """The job of an extraction, which is shared by several detectors."""
    return workspace.once(stage, lambda: stage.job(workspace))


def _stored_or_sampled(workspace: Workspace, stage: Extract) -> Extract:
    """The extraction of all rows if that is stored and the sample is not, else of the sample."""
    whole = stage.model_copy(update={"sample": None})
    stored = [is_stored(_features(workspace, each)) for each in (stage, whole)]
    return whole if stored == [False, True] else stage


def _check_distinct(sources: Sequence[ImageSource]) -> None:
    names = [each.name for each in sources]
    if len(set(names)) < len(names):
        raise InputError(f"ood: expected each set once, found {', '.join(names)}")


@dataclass(frozen=True)
class Comparison:
    """A result, the stage that makes it, and the features that it needs."""

    stage: Detect
    result: ArtifactJob
    sides: Sides
    features: Sequence[ShardJob]
