"""Steps that judge and show: evaluate, and report, the last one."""

from __future__ import annotations

from functools import partial

from pipeline.journal import Journal
from pipeline.recipe_run import Collected, Task
from stages.applications.evaluation import Contender, evaluate, result_of, result_plan
from stages.recipes.context import Context, Inputs
from stages.recipes.params import EvaluateParams, ReportParams
from stages.recipes.tasks import task_of
from stages.report.learning import build_learning_report, is_learning
from stages.report.report import build_report, report_plan
from stages.report.results import Entry
from stages.report.tables import TableSpec
from store.featureset import FeatureSet
from store.plan import fingerprint


def result_task(context: Context, params: EvaluateParams, inputs: Inputs) -> Task:
    """Judge f and the heads on the features."""
    features: FeatureSet = inputs["features"]
    heads: tuple[Collected, ...] = inputs.get("heads", ())
    contenders = [Contender(head.label, head.output) for head in heads]
    n, seed = params.resamples, params.seed
    plan = result_plan(features, contenders, n, seed)
    artifact = result_of(context.store, features, contenders, n_resamples=n, seed=seed)

    def run(journal: Journal) -> None:
        evaluate(context.store, features, contenders, n_resamples=n, seed=seed, journal=journal)

    return task_of(artifact, plan, run)


def report_task(context: Context, params: ReportParams, inputs: Inputs) -> Task:
    """Show the results on a page, under the recipe's title."""
    results: tuple[Collected, ...] = inputs["results"]
    # Several steps may stand at the same axes: then their labels are one more axis.
    is_labelled = len(params.results) > 1
    entries = [
        Entry({**({"set": each.label} if is_labelled else {}), **each.axes}, each.output)
        for each in results
    ]
    table = TableSpec(params.table.paper, params.table.metrics) if params.table else None
    says = partial(
        report_plan,
        title=context.recipe.title,
        about=context.recipe.about,
        entries=entries,
        table=table,
        figures=params.figures,
        notes=params.notes,
    )
    plan = says()
    name = f"{context.recipe.name}-{fingerprint(plan)[:8]}"
    build = build_learning_report if is_learning(entries[0].result) else build_report

    def run(journal: Journal) -> None:
        build(context.store, name, **says.keywords, command=context.command, journal=journal)

    return task_of(context.store.artifact("report", name), plan, run)
