"""The step of active learning: active-learn."""

from __future__ import annotations

from pipeline.journal import Journal
from pipeline.recipe_run import Task
from stages.applications.active_learning import RoundParams
from stages.applications.active_runs import ActiveRuns, lessons_of, run_all
from stages.applications.lesson import LessonParams
from stages.recipes.context import Context, Inputs
from stages.recipes.params import ActiveLearnParams
from stages.recipes.tasks import task_of
from stages.sensing.build import located
from stages.sensing.trust import require_trust


def learning_task(context: Context, params: ActiveLearnParams, inputs: Inputs) -> Task:
    """Make the runs that are missing, and their curves."""
    size = params.image_size
    tests = {"clean": context.source(params.dataset, "test", image_size=size)}
    if params.images is not None:
        only = (params.corruption,)
        noisy = context.source(inputs["images"], "test", image_size=size, corruptions=only)
        tests[params.corruption] = noisy
    source = context.source(params.dataset, "train", image_size=size, limit=params.limit)
    runs = ActiveRuns(_lessons(params), _rounds(params), source, tests)

    def run(journal: Journal) -> None:
        run_all(context.store, runs, context.extracting, context.extracting_device, journal)

    return task_of(runs.result_of(context.store), runs.plan(), run)


def check_learning(context: Context, params: ActiveLearnParams, _: Inputs) -> None:
    """Raise ``InputError`` where the data set is not there, or too small for what is asked."""
    _lessons(params)
    n_rows = context.source(params.dataset, "train", limit=params.limit).open().n_rows
    _rounds(params).check(n_rows)


def _lessons(params: ActiveLearnParams) -> tuple[LessonParams, ...]:
    require_trust(params.network, "the recipe")
    lesson = LessonParams(
        network=located(params.network),
        epochs=params.epochs,
        batch=params.batch,
        lr=params.lr,
        head_lr=params.head_lr,
        layers=params.layers,
    )
    return lessons_of(lesson, params.strategies, params.kinds, params.seeds)


def _rounds(params: ActiveLearnParams) -> RoundParams:
    return RoundParams(params.rounds, params.query, params.start)
