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
    require_trust(params.network, "the recipe")
    size = params.image_size
    tests = {"clean": context.source(params.dataset, "test", image_size=size)}
    if params.images is not None:
        only = (params.corruption,)
        noisy = context.source(inputs["images"], "test", image_size=size, corruptions=only)
        tests[params.corruption] = noisy
    lesson = LessonParams(
        network=located(params.network),
        epochs=params.epochs,
        batch=params.batch,
        lr=params.lr,
        head_lr=params.head_lr,
        layers=params.layers,
    )
    runs = ActiveRuns(
        lessons_of(lesson, params.strategies, params.kinds, params.seeds),
        RoundParams(params.rounds, params.query, params.start),
        context.source(params.dataset, "train", image_size=size, limit=params.limit),
        tests,
    )

    def run(journal: Journal) -> None:
        run_all(context.store, runs, context.extracting, context.extracting_device, journal)

    return task_of(runs.result_of(context.store), runs.plan(), run)
