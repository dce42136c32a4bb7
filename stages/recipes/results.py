"""Steps that judge and show: evaluate, and report, the last one."""

from __future__ import annotations

from functools import cache, partial

from pipeline.journal import Journal
from pipeline.recipe_run import Collected, Task
from stages.applications.detection import Comparison, Sides, check_sides, detect
from stages.applications.detection import result_of as detection_of
from stages.applications.detection import result_plan as detection_plan
from stages.applications.detectors import DETECTORS
from stages.applications.evaluation import Contender, evaluate, result_of, result_plan
from stages.applications.overlap import check_apart
from stages.data.registry import SourceSpec
from stages.recipes.context import Context, Inputs
from stages.recipes.params import EvaluateParams, ExtractParams, OodParams, ReportParams
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


def ood_task(context: Context, params: OodParams, inputs: Inputs) -> Task:
    """Tell the sets apart by f and the heads."""
    moved = "odin_" if params.detector == "odin" else ""
    inside, outside = inputs[f"{moved}features"], inputs[f"{moved}against"]
    is_fitted = DETECTORS[params.detector].fit is not None
    sides = Sides(inside, outside, inputs["training"] if is_fitted else None)
    heads: tuple[Collected, ...] = inputs.get("heads", ())
    contenders = [Contender(head.label, head.output) for head in heads]
    comparison = Comparison(params.detector, params.rows, params.resamples, params.seed)
    check_sides(sides, contenders, comparison)
    plan = detection_plan(sides, contenders, comparison)
    artifact = detection_of(context.store, sides, contenders, comparison)

    def run(journal: Journal) -> None:
        detect(context.store, sides, contenders, comparison, journal=journal)

    return task_of(artifact, plan, run)


def check_sets_apart(context: Context, _: OodParams, needs: Inputs) -> None:
    """Raise ``InputError`` where the sets that are told apart share images."""
    specs = [_source_of(context, needs[key]) for key in ("features", "against")]
    if specs[0] is not None and specs[1] is not None:
        _check_apart(specs[0], specs[1])


@cache  # the same for each detector and network
def _check_apart(inside: SourceSpec, outside: SourceSpec) -> None:
    check_apart(inside.open(), [outside.open()])


def _source_of(context: Context, params: ExtractParams) -> SourceSpec | None:
    """What a step extracts; None for a corrupted set, which may not be there yet."""
    if params.dataset is None:
        return None
    return context.source(
        params.dataset, params.split, limit=params.limit, corruptions=params.corruptions
    )


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
