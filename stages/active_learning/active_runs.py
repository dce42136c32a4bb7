"""Many runs of active learning, one for each strategy, kind of model and seed, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
from pydantic import Field
from scipy.stats import t as student

from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.loop import Claim, Loop
from pipeline.make import ArtifactJob, Output
from pipeline.parts import Parts, make_parts
from pipeline.stage import Preview
from stages.active_learning.lesson import ENOUGH, VERSION, Kind, LessonParams
from stages.active_learning.result_names import CURVES_STAGE, RUN_STAGE
from stages.active_learning.rounds import ActiveLearning, RoundParams, RunCard
from stages.data.classes import check_same_classes
from stages.data.registry import SourceSpec
from stages.data.source import check_planned, require_labels, source_facts
from stages.errors import InputError
from stages.stored_card import StoredCard
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy

CURVES = "curves.parquet"

BESIDE = "f beside H"
"""Predictor of a run in which H selects: the f whose output H reads."""


def lessons_of(
    lesson: LessonParams,
    strategies: Sequence[str],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
) -> tuple[LessonParams, ...]:
    """One set of parameters per strategy, kind and seed; raises ``InputError`` for duplicates."""
    for name, values in (("strategies", strategies), ("kinds", kinds), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}: expected one or more different ones, found {list(values)}")
    return tuple(
        replace(lesson, strategy=strategy, kind=kind, seed=seed)
        for strategy, kind, seed in product(strategies, kinds, seeds)
    )


@dataclass(frozen=True)
class ActiveRuns:
    """Runs on the same pool and test sets, one for each of ``lessons``.

    Attributes:
        lessons: see ``lessons_of``.
        rounds: number of rounds and of labels of each run.
        source: the pool.
        tests: the test sets by name.
    """

    lessons: tuple[LessonParams, ...]
    rounds: RoundParams
    source: SourceSpec
    tests: Mapping[str, SourceSpec]

    @cached_property
    def inputs(self) -> Plan:
        """Facts about the images that plans record; opens and hashes the images.

        Raises:
            InputError: the pool or a test set has no labels, or their classes differ.
        """
        pool = self.source.open()
        tests = {name: test.open() for name, test in self.tests.items()}
        require_labels(pool)
        for test in tests.values():
            require_labels(test)
            check_same_classes(pool, test)
        return {
            "source": source_facts(pool),
            "tests": {name: source_facts(test) for name, test in tests.items()},
        }

    def run_plan(self, lesson: LessonParams) -> Plan:
        """Everything that determines a run."""
        return lesson.plan(RUN_STAGE, asdict(self.rounds), self.inputs)

    def run_of(self, store: FeatureStore, lesson: LessonParams) -> Artifact:
        """The result of a run, which may not exist yet."""
        words = (self.name, "active", lesson.strategy, lesson.kind, str(lesson.seed))
        short = fingerprint(self.run_plan(lesson))[:8]
        return store.artifact("result", "-".join((*words, short)))

    def plan(self) -> Plan:
        """Everything that determines the curves of all runs."""
        plans = [self.run_plan(lesson) for lesson in self.lessons]
        return {
            "stage": {"name": CURVES_STAGE, "version": VERSION},
            "inputs": {
                **self.inputs,
                "runs": [fingerprint(plan) for plan in plans],
            },
        }

    def result_of(self, store: FeatureStore) -> Artifact:
        """The curves of all runs, which may not exist yet."""
        return store.artifact("result", f"{self.name}-active-{fingerprint(self.plan())[:8]}")

    @property
    def name(self) -> str:
        """Name of the pool."""
        return str(self.inputs["source"]["name"])

    def stage(self, lesson: LessonParams, device: str) -> ActiveLearning:
        """The loop of one run."""
        return ActiveLearning(lesson, self.rounds, self.source, self.tests, device)

    def parts(self, store: FeatureStore, device: str) -> Parts:
        """The runs, for workers."""
        loops = []
        for lesson in self.lessons:
            run = self.run_of(store, lesson)
            loop = Loop(partial(self.stage, lesson, device), self.rounds.rounds)
            loops.append((Claim(run, self.run_plan(lesson), store, title=run.name), loop))
        return Parts(tuple(loops), "rounds", self.set_up)

    def set_up(self, n_threads: int) -> None:
        """Let torch use this many threads, and check the images."""
        import torch

        torch.set_num_threads(n_threads)
        self.check_images()

    def check_images(self) -> None:
        """Raise ``InputError`` if the images are no longer the planned ones."""
        check_planned(self.source.open(), self.inputs["source"])
        for name, test in self.tests.items():
            check_planned(test.open(), self.inputs["tests"][name])


@dataclass(frozen=True, slots=True)
class CurvesCard(StoredCard):
    """The card of the curves.

    Attributes:
        runs: names of the results of the runs.
        lessons: how each run trained, and how it selected rows.
        rounds: number of rounds and of labels.
        dataset: facts of the pool, as JSON.
        tests: facts of the tests by name, as JSON.
        n_pool: number of images in the pool.
        n_tests: number of images in each test.
        trainings: number of trainings.
        short_trainings: number of those that ended with less than ``ENOUGH`` training accuracy.
        left_out: name of a test, or "pool" -> most rows that a round left out, if any.
    """

    runs: tuple[str, ...]
    lessons: Annotated[tuple[LessonParams, ...], Field(min_length=1)]
    rounds: RoundParams
    dataset: Mapping[str, Any]  # Any: JSON
    tests: Mapping[str, Mapping[str, Any]]
    n_pool: int
    n_tests: Mapping[str, int]
    trainings: int
    short_trainings: int
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def names_of_tests(self) -> dict[str, str]:
        """Name of a test -> name of its data set."""
        return {test: str(facts.get("name")) for test, facts in self.tests.items()}

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """The card as it is stored."""
        lessons = [lesson.facts() for lesson in self.lessons]
        facts = {**asdict(self), "lessons": lessons}
        return {key: value for key, value in facts.items() if value != {}}


def curves_job(
    store: FeatureStore,
    runs: ActiveRuns,
    workers: Callable[[], tuple[Executor, str]],
    notes: Sequence[str] = (),
) -> ArtifactJob:
    """The job that computes the missing runs, in parallel if there are workers, and the curves.

    Args:
        store: where the runs and the curves are kept.
        runs: the runs.
        workers: returns the executor, and the device that its workers compute on.
        notes: lines to print first.
    """
    result, rounds = runs.result_of(store), runs.rounds
    title = f"active learning on {runs.name}"
    names = [runs.run_of(store, lesson).name for lesson in runs.lessons]
    text = (
        f"make {result.name}: {len(names)} runs of {rounds.rounds} rounds, {rounds.n_labelled:,} "
        "labels each\n" + "\n".join(names)
    )

    def check() -> None:
        """Raise ``InputError`` or ``ResourceError`` if the first run could not start."""
        executor, device = workers()
        runs.stage(runs.lessons[0], device).start()
        executor.check()

    def make_runs(journal: Journal) -> None:
        executor, device = workers()
        parts, place = runs.parts(store, device), result.storage.location
        make_parts(parts, executor, journal, title=title, place=place)

    return ArtifactJob(
        store,
        result,
        runs.plan(),
        title=title,
        preview=Preview(text, {"result": result.name, "runs": names}, notes),
        compute=lambda: _curves_of(store, runs),
        check=check,
        make_parts=make_runs,
    )


def _curves_of(store: FeatureStore, runs: ActiveRuns) -> Output:
    """The curves of finished runs; raises ``InputError`` if the images changed in the meantime."""
    runs.check_images()
    names = tuple(runs.run_of(store, lesson).name for lesson in runs.lessons)
    cards = [RunCard.of(store.artifact("result", name)) for name in names]
    frame = pd.concat([_curve(card) for card in cards], ignore_index=True)
    rounds = [each for card in cards for each in card.rounds]
    fits = [fit for each in rounds for fit in each.fits]
    left_out: dict[str, int] = {}
    for name, n in (pair for each in rounds for pair in each.left_out.items()):
        left_out[name] = max(left_out.get(name, 0), n)
    card = CurvesCard(
        runs=names,
        lessons=runs.lessons,
        rounds=runs.rounds,
        dataset=runs.inputs["source"],
        tests=runs.inputs["tests"],
        n_pool=cards[0].n_pool,
        n_tests=cards[0].n_tests,
        trainings=len(fits),
        short_trainings=sum(fit.accuracy < ENOUGH for fit in fits),
        left_out=left_out,
    )
    return {CURVES: frame.to_parquet(index=False)}, card.to_dict()


def read_curves(result: Artifact) -> pd.DataFrame:
    """The accuracies: one row per run, round, test and predictor.

    Columns strategy, kind, seed, round (from 0), labelled, test, predictor and accuracy. The
    predictor is f or H, according to the kind; ``f beside H`` is the f whose output H reads.
    """
    return result.read_frame(CURVES)


def means_of(curves: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean accuracy over the rounds, then over the seeds, with a 95 % interval over these.

    Args:
        by: further columns to group by, such as ``labelled``.

    Returns:
        strategy, kind, predictor, test, ``by``; ``mean``, ``std``, ``n_seeds``, ``low`` and
        ``high``: Student's t over the seeds, NaN for one seed.
    """
    keys = ["strategy", "kind", "predictor", "test", *by]
    seeds = curves.groupby([*keys, "seed"], sort=False)["accuracy"].mean()
    return with_interval(seeds.groupby(level=keys, sort=False))


def with_interval(groups: SeriesGroupBy[Any, Any]) -> pd.DataFrame:
    """``mean``, ``std``, ``n_seeds``, ``low`` and ``high`` of each group, as ``means_of``."""
    found = groups.agg(["mean", "std", "count"]).reset_index()
    found = found.rename(columns={"count": "n_seeds"})
    n = found["n_seeds"]
    reach = found["std"] / n**0.5 * student.ppf(0.975, (n - 1).where(n > 1))
    return found.assign(low=found["mean"] - reach, high=found["mean"] + reach)


def _curve(card: RunCard) -> pd.DataFrame:
    """The rounds of a run as rows."""
    lesson = card.lesson
    own = "f" if lesson.kind == "f" else "H"
    return pd.DataFrame(
        {
            "strategy": lesson.strategy,
            "kind": lesson.kind,
            "seed": lesson.seed,
            "round": number,
            "labelled": each.labelled,
            "test": test,
            "predictor": predictor if predictor == own else BESIDE,
            "accuracy": accuracy,
        }
        for number, each in enumerate(card.rounds)
        for (predictor, test), accuracy in each.accuracies.items()
    )
