"""Many runs of active learning side by side: strategies, kinds of models and seeds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from scipy.stats import t as student

from pipeline.executors import Executor
from pipeline.journal import Journal
from pipeline.loop import run_loop
from pipeline.runner import run_map
from pipeline.stage import ShardOutput, Tick
from stages.applications.active_learning import VERSION, ActiveLearning, RoundParams, code_of
from stages.applications.lesson import ENOUGH, Kind, LessonParams
from stages.data.registry import SourceSpec
from stages.data.source import check_planned, source_facts
from stages.errors import InputError
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint, readable_json
from store.shards import Shard
from store.shardset import ShardSet

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy

CURVES = "curves.parquet"
RUNS = "runs"
"""Folder of the result with the receipts of its runs; what they made are results of their own."""


def lessons_of(
    lesson: LessonParams,
    strategies: Sequence[str],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
) -> tuple[LessonParams, ...]:
    """The same lesson for every strategy, kind and seed; raises ``InputError`` for one twice."""
    for name, values in (("strategies", strategies), ("kinds", kinds), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}: expected one or more different ones, found {list(values)}")
    return tuple(
        replace(lesson, strategy=strategy, kind=kind, seed=seed)
        for strategy, kind, seed in product(strategies, kinds, seeds)
    )


@dataclass(frozen=True)
class ActiveRuns:
    """Runs on the same pool and the same tests, one for each lesson.

    Attributes:
        lessons: see ``lessons_of``.
        tests: by name.
    """

    lessons: tuple[LessonParams, ...]
    rounds: RoundParams
    source: SourceSpec
    tests: Mapping[str, SourceSpec]

    @cached_property
    def inputs(self) -> Plan:
        """What plans say of the images; opens and hashes them."""
        return {
            "source": source_facts(self.source.open()),
            "tests": {name: source_facts(test.open()) for name, test in self.tests.items()},
        }

    def run_plan(self, lesson: LessonParams) -> Plan:
        """Everything that determines a run."""
        params = {**asdict(lesson), "layers": list(lesson.layers), **asdict(self.rounds)}
        return {
            **code_of(lesson.network),
            "stage": {"name": "active-learning", "version": VERSION, "params": params},
            "inputs": self.inputs,
        }

    def run_of(self, store: FeatureStore, lesson: LessonParams) -> Artifact:
        """The result of a run; it need not exist."""
        plan = self.run_plan(lesson)
        parts = (self.inputs["source"]["name"], "active", lesson.strategy, lesson.kind)
        name = "-".join((*parts, str(lesson.seed), fingerprint(plan)[:8]))
        return store.artifact("result", name)

    def plan(self) -> Plan:
        """Everything that determines the curves of all runs."""
        plans = [self.run_plan(lesson) for lesson in self.lessons]
        return {
            "stage": {"name": "active-learning-curves", "version": VERSION},
            "inputs": {
                **self.inputs,
                "runs": [fingerprint(plan) for plan in plans],
            },
        }

    def result_of(self, store: FeatureStore) -> Artifact:
        """The curves of all runs; they need not exist."""
        name = f"{self.inputs['source']['name']}-active-{fingerprint(self.plan())[:8]}"
        return store.artifact("result", name)


@dataclass(frozen=True)
class RunAll:
    """The map stage whose shards are runs; a row of a shard is an epoch, at most.

    A run that is killed goes on from its last round, wherever it is handed to.
    """

    store: FeatureStore
    runs: ActiveRuns
    device: str

    name: ClassVar[str] = "active-learning"
    version: ClassVar[int] = VERSION

    def plan(self) -> Plan:
        """Of the set of receipts."""
        shard_rows = 2 * self.runs.lessons[0].epochs * self.runs.rounds.rounds
        n_rows = shard_rows * len(self.runs.lessons)
        return {**self.runs.plan(), "n_rows": n_rows, "shard_rows": shard_rows}

    def check(self, plan: Plan) -> None:
        """Make sure that the images are still the planned ones; raises ``InputError``."""
        check_planned(self.runs.source.open(), plan["inputs"]["source"])
        for name, test in self.runs.tests.items():
            check_planned(test.open(), plan["inputs"]["tests"][name])

    def setup(self, n_threads: int) -> None:
        """Nothing is kept from one run to the next."""
        import torch

        torch.set_num_threads(n_threads)

    def compute(self, state: None, shard: Shard, tick: Tick) -> ShardOutput:  # noqa: ARG002 - see setup
        """Run all rounds that are missing."""
        lesson = self.runs.lessons[shard.index]
        run = self.runs.run_of(self.store, lesson)
        stage = stage_of(self.runs, lesson, self.device, watch=tick)
        report = run_loop(
            stage,
            run,
            self.runs.run_plan(lesson),
            self.store,
            Journal(_Silence()),
            title=run.name,
            rows="epochs",
            stream=io.StringIO(),
        )
        done = {"run": run.name, "rounds_run_now": report.n_units_run}
        return ShardOutput({f"{shard.index:05d}.json": readable_json({"run": run.name})}, done)


class _Silence:
    """The log of a run within another, whose journal tells of it."""

    def exists(self) -> bool:
        """It looks begun, so that nothing is begun."""
        return True

    def add(self, line: str) -> None:
        """Nothing is written."""

    def flush(self) -> None:
        """Nothing is there."""


def stage_of(
    runs: ActiveRuns, lesson: LessonParams, device: str, *, watch: Tick = lambda _: None
) -> ActiveLearning:
    """The loop of one run."""
    return ActiveLearning(lesson, runs.rounds, runs.source, runs.tests, device, watch)


def run_all(
    store: FeatureStore, runs: ActiveRuns, executor: Executor, device: str, journal: Journal
) -> Artifact:
    """Make the runs that are missing, side by side where the executor has workers, and the curves.

    Raises:
        InputError: the pool is smaller than what will be asked for.
        RunFailedError: some runs failed; the others are kept.
    """
    result, plan = runs.result_of(store), runs.plan()
    if result.refuse_other(plan) and result.is_settled():
        return result
    stage_of(runs, runs.lessons[0], device).start()  # what cannot start is refused first
    executor.check()
    store.prepare()
    result.claim(plan)
    stage = RunAll(store, runs, device)
    receipts = ShardSet.create(result.storage.child(RUNS), stage.plan(), {})
    title = f"active learning on {runs.inputs['source']['name']}"
    run_map(stage, receipts, executor, journal, title=title, unit="epochs")
    cards = [runs.run_of(store, lesson).card() for lesson in runs.lessons]
    frame = pd.concat([_curve(card) for card in cards], ignore_index=True)
    trainings = [training for card in cards for training in _trainings(card)]
    facts = {
        "runs": [runs.run_of(store, lesson).name for lesson in runs.lessons],
        "lessons": [asdict(lesson) for lesson in runs.lessons],
        "rounds": asdict(runs.rounds),
        "dataset": runs.inputs["source"],
        "tests": runs.inputs["tests"],
        **{name: cards[0][name] for name in ("n_pool", "n_tests")},
        "trainings": len(trainings),
        "short_trainings": sum(accuracy < ENOUGH for accuracy in trainings),
    }
    result.write({CURVES: frame.to_parquet(index=False)}, facts)
    return result


def read_curves(result: Artifact) -> pd.DataFrame:
    """A row for each run, round, test and predictor.

    Columns strategy, kind, seed, round (from 0), labelled, test, predictor and accuracy. The
    predictor is that of the kind, f or H; ``f beside H`` is the f that H reads.
    """
    return pd.read_parquet(io.BytesIO(result.read(CURVES)))


def means_of(curves: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean accuracy over the rounds, then over the seeds, with a 95 % interval over these.

    Args:
        by: more columns that are kept apart, such as ``labelled``.

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


def _trainings(card: Mapping[str, Any]) -> list[float]:
    """How each training of a run ended: the share of its rows that were right."""
    keys = ("train_accuracy", "head_train_accuracy")
    return [metrics[key] for metrics in card["history"] for key in keys if key in metrics]


def _curve(card: Mapping[str, Any]) -> pd.DataFrame:
    """The history of a run as rows."""
    lesson = card["lesson"]
    own = "f" if lesson["kind"] == "f" else "H"
    rows = []
    for number, metrics in enumerate(card["history"]):
        for key, accuracy in metrics.items():
            predictor, on, test = key.partition(" on ")
            if on:
                rows.append(
                    {
                        **{name: lesson[name] for name in ("strategy", "kind", "seed")},
                        "round": number,
                        "labelled": int(metrics["labelled"]),
                        "test": test,
                        "predictor": predictor if predictor == own else "f beside H",
                        "accuracy": accuracy,
                    }
                )
    return pd.DataFrame(rows)
