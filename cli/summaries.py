"""The printed summary of an output, as text and as JSON: one function per verb."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cli.analysis import analyse
from cli.conformity import conformal
from cli.curation import curate
from cli.estimation import estimate_accuracy
from cli.influences import influence
from cli.learning import active_learn
from cli.output import note
from cli.pruning import prune
from cli.quality import iqa
from cli.recipes import summary_of_recipe
from cli.tested_maps import draw_maps, evaluate_maps, sheet_or_command
from pipeline.runner import RunReport
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace
from store.failures import failures_of
from store.featureset import FeatureSet

if TYPE_CHECKING:
    from stages.explanation.explain import Explain
    from stages.judging.judged_result import Evaluation
    from stages.ood.ood import Ood
    from stages.reflection.extract import Extract
    from store.artifacts import Artifact

Summary = tuple[str, Any]  # Any: JSON
R = TypeVar("R")

PRIOR_FROM = {
    "given": "as given",
    "evidence": "by the marginal likelihood",
    "validation": "by the likelihood of the validation rows",
}


def corrupt(_: Stage, made: Made, __: Workspace) -> Summary:
    """Number of images of the set, and of computed corruptions or shards of files."""
    folder = made.job.preview.facts["folder"]
    is_files = "jpeg_quality" in made.job.plan["stage"]["params"]
    work = _work_done(made, "shard" if is_files else "corruption")
    text = f"{folder}: {counted(made.output.n_rows, 'image')}; {work}"
    return text, {"folder": folder, **_shard_facts(made)}


def extract(stage: Extract, made: Made, workspace: Workspace) -> Summary:
    """Number of computed rows and of failed rows."""
    found: FeatureSet = made.output
    for line in workspace.store.siblings(found):
        note(line)
    work = _rows_recovered(found) if stage.retry_failed else _work_done(made, "shard")
    text = f"{found.name}: {counted(found.n_rows, 'row')}; {work}"
    failures = failures_of(found.shard_set)
    if failures.n_failed:
        text += f"; {failures}; see the column `status`, fix the images and use --retry-failed"
    return text, {"feature_set": found.name, **_shard_facts(made)}


def explain(stage: Explain, made: Made, workspace: Workspace) -> Summary:
    """Number of rows and maps, how they were computed, and how to see them."""
    found: FeatureSet = made.output
    n_maps = found.schema.array("maps").row_shape[0]
    facts = {key: made.job.preview.facts[key] for key in ("layer", "grid", "in_closed_form")}
    text = (
        f"maps {found.name}: {counted(found.n_rows, 'row')} of {counted(n_maps, 'map')}, "
        f"{'x'.join(map(str, facts['grid']))} places of layer {facts['layer']}; "
        f"{_work_done(made, 'shard')}"
    )
    failures = failures_of(found.shard_set)
    if failures.n_failed:
        text += f"; {failures}; see the column `status`, fix the cause and use --retry-failed"
    facts["copied"] = [str(path) for path in made.copied]
    text += f"\n{sheet_or_command(stage, made, workspace)}"
    return text, {"maps": found.name, **facts, **_shard_facts(made)}


def score(_: Stage, made: Made, __: Workspace) -> Summary:
    """Columns of the scores, and where the files are."""
    found: FeatureSet = made.output
    columns = made.job.preview.facts["columns"]
    text = (
        f"scores {found.name}: {counted(found.n_rows, 'row')} of {', '.join(columns)}; "
        f"{_work_done(made, 'shard', 'rows')}\n{found.shard_set.storage.location}/samples"
    )
    return text, {"scores": found.name, "columns": columns, **_shard_facts(made)}


def _rows_recovered(found: FeatureSet) -> str:
    from stages.reflection.retry import retried_rows

    receipts = found.shard_set.receipts()
    n = sum(len(retried_rows(each) - each.failed.keys()) for each in receipts)
    return f"{n} of them recovered after failing"


def _work_done(made: Made, unit: str, rows: str = "images") -> str:
    report = made.report
    assert isinstance(report, RunReport)
    if report.n_computed == 0:
        if report.n_shards == 1:
            return f"its {unit} exists already"
        return f"all {counted(report.n_shards, unit)} exist already"
    speed = f"{report.rows_per_s:,.0f} {rows}/s"
    n_all = counted(report.n_shards, unit)
    return f"{report.n_computed:,} of {n_all} computed in this run ({speed})"


def _shard_facts(made: Made) -> Mapping[str, Any]:
    """Report of the run, and the files that the data set leaves out."""
    assert isinstance(made.report, RunReport)
    return {**made.report.to_dict(), "left_out": made.job.preview.facts["left_out"]}


def train_sensing(_: Stage, made: Made, __: Workspace) -> Summary:
    """Accuracy on both splits, and the snapshots that were kept."""
    from stages.sensing.trained import TrainedModel

    model, asked = TrainedModel.of(made.output), made.job.preview.facts
    test, kept = model.test_accuracy, asked["snapshots"]
    text = (
        f"model {made.name}: accuracy {model.train_accuracy:.4f} on train, "
        f"{'none' if test is None else f'{test:.4f}'} on test, M = {model.M:.4f}; "
        f"{counted(made.n_units_run, 'epoch')} in this run"
    )
    text += f"; {counted(len(kept), 'snapshot')}, last {kept[-1]}" if kept else ""
    if n := model.n_train_left_out:
        text += f"; {counted(n, 'training image')} left out: unreadable or without a label"
    left_out = {"train": model.n_train_not_finite, "test": model.n_test_not_finite}
    for split, n_left_out in left_out.items():
        if n_left_out:
            note(
                f"{counted(n_left_out, f'{split} image')} left out of the accuracy: the network's "
                "logits for them are not finite"
            )
    facts = {"model": made.name, "snapshots": kept, **card_facts(made.output)}
    return text, {**facts, "left_out": asked["left_out"]}


def import_model(_: Stage, made: Made, __: Workspace) -> Summary:
    """What the model reads and returns."""
    from stages.sensing.models import model_card

    card, facts = model_card(made.output), made.job.preview.facts
    text = (
        f"model {made.name}{' exists already' * facts['exists']}: {card.n_classes:,} classes, "
        f"{counted(card.feature_dim, 'feature')} from "
        f"{card.last_layer}, images of {card.image_size} pixels"
        f"{f', {card.resizing.rule(None)}' if card.resizing else ''}"
    )
    return text, {"model": made.name, "card": card.to_dict(), "left_out": facts["left_out"]}


def head(_: Stage, made: Made, __: Workspace) -> Summary:
    """How well a network was trained, or what a temperature or nearest neighbours consist of."""
    from stages.introspection.head_card import (
        FittedLaplace,
        FittedTemperature,
        TrainedNetwork,
        Votes,
        head_card,
    )

    card = head_card(made.output)
    match card.predictor:
        case TrainedNetwork(tempered_on=features) as fit if features:
            if features == card.features:
                note("fitted on its training rows, on which it is more confident than on new ones")
            values = zip(fit.temperatures, fit.nll_before, fit.nll_after, strict=True)
            text = f"negative log-likelihood on {features}: " + ", ".join(
                f"{before:.4f} -> {after:.4f} (T = {value:.4f})" for value, before, after in values
            )
        case TrainedNetwork(spec=spec, train_accuracy=accuracies):
            accuracy = ", ".join(f"{each:.4f}" for each in accuracies)
            text = f"accuracy {accuracy} on its training rows"
            text += "" if spec.M is None else f", M = {spec.M:.4f}"
            text += f"; {counted(made.n_units_run, 'epoch')} in this run"
        case FittedTemperature() as fit:
            if fit.split == "train":
                note("fitted on training images, on which f is more confident than on new ones")
            text = (
                f"T = {fit.temperature:.4f}, negative log-likelihood {fit.nll_before:.4f} -> "
                f"{fit.nll_after:.4f} on {counted(card.train_rows, 'row')}"
            )
        case Votes(k, reading, temperature):
            text = f"the {k} nearest of {card.train_rows:,} rows vote, by their {reading.reads}"
            text += f", with weights exp(cosine / {temperature:g})" if temperature else ""
        case FittedLaplace() as fit:
            facts = card_facts(made.output)
            text = (
                f"{fit.structure} posterior of {facts['n_parameters']:,} weights from "
                f"{counted(card.train_rows, 'row')}, prior precision {fit.prior:.4g} "
                f"({PRIOR_FROM[fit.prior_from]}), log marginal likelihood {fit.evidence:,.1f}"
            )
    return f"head {made.name}: {text}", {"head": made.name, **card_facts(made.output)}


def evaluate(_: Stage, made: Made, __: Workspace) -> Summary:
    """The averages of f and of the heads."""
    from cli.comparison import shown
    from stages.judging.judged_result import open_evaluation

    result = open_evaluation(made.output)
    return shown(result), _facts_of_tables(made.output)


def uncertainty(_: Stage, made: Made, __: Workspace) -> Summary:
    """The averages of all predictors."""
    from cli.comparison import shown
    from stages.judging.judged_result import open_evaluation
    from stages.report.vocabulary import UNCERTAINTY_METRICS

    def of(result: Evaluation) -> str:
        return shown(result, UNCERTAINTY_METRICS, ("nll", "ece"))

    return _of_sets(made, open_evaluation, of)


def detect_failures(_: Stage, made: Made, __: Workspace) -> Summary:
    """The confidences of each predictor, the best first."""
    from cli.failures import failure_table
    from stages.failures.failure_result import open_failures

    return _of_sets(made, open_failures, failure_table)


def _of_sets(
    made: Made, open_result: Callable[[Artifact], R], text_of: Callable[[R], str]
) -> Summary:
    """The summary of one result, or those of several below each other."""
    several = isinstance(made.output, list)
    artifacts: list[Artifact] = made.output if several else [made.output]
    found = [open_result(each) for each in artifacts]
    facts = [_facts_of_tables(each) for each in artifacts]
    texts = [text_of(each) for each in found]
    if not several:
        return texts[0], facts[0]
    names = shlex.join(each.name for each in artifacts)
    return "\n\n".join([*texts, f"all on one page: intro-pipe report {names}"]), facts


def _facts_of_tables(result: Artifact) -> dict[str, Any]:
    """Name, place, definitions and tables of a result that compares predictors, as JSON."""
    from stages.introspection.comparison_card import ComparisonCard

    card = ComparisonCard.of(result)
    frames = {
        name: result.read_frame(f"{name.replace('_', '-')}.parquet")
        for name in ("average", "by_group")
    }
    return {
        "result": result.name,
        "location": result.storage.location,
        "title": card.title,
        "definitions": {**card.definitions, **card.statistics},
        **{name: frame.to_dict(orient="records") for name, frame in frames.items()},
    }


def ood(stage: Ood, made: Made, _: Workspace) -> Summary:
    """A line for each set, detector and predictor."""
    from cli.detection import detection_facts, detection_table
    from stages.ood.detection_result import open_detection

    for each in made.report:
        n_failed = each.report.n_failed_rows
        failed = f", {n_failed} not read" if n_failed else ""
        note(f"extracted {each.name}: {counted(each.output.n_rows, 'row')}{failed}")
    found = [open_detection(each) for each in made.output]
    n_detectors = len(found) // len(stage.groups)
    groups = [group for _, group in stage.groups for _ in range(n_detectors)]
    facts = [detection_facts(each) | {"group": g} for each, g in zip(found, groups, strict=True)]
    return detection_table(found, groups), facts


def report(_: Stage, made: Made, __: Workspace) -> Summary:
    """The findings of the page, and the paths of the page and its copy."""
    from stages.report.content import ReportCard

    card, page = ReportCard.of(made.output), f"{made.output.storage.location}/report.html"
    copied = [str(path) for path in made.copied]
    to = [f"copied to {path.parent}" for path in made.copied if path.name == "report.html"]
    facts = {
        "report": made.name,
        "page": page,
        "copied": copied,
        "shows": card.shows,
        "falls_short": card.falls_short,
        "figures": card.figures,
    }
    return "\n".join([*card.shows, f"page: {page}", *to]), facts


def card_facts(artifact: Artifact) -> dict[str, Any]:
    """The facts of a card, without its history and its files."""
    return {key: value for key, value in artifact.card().items() if key not in ("history", "files")}


def summary(stage: Stage, made: Made, _: Workspace) -> Summary:
    """The name of the output, for a verb that has no summary of its own."""
    return f"{stage.makes} {made.name}", {stage.makes: made.name}


SUMMARIES: Mapping[str, Callable[..., Summary]] = {
    "corrupt": corrupt,
    "extract": extract,
    "train-sensing": train_sensing,
    "import-model": import_model,
    "train-head": head,
    "fit-temperature": head,
    "fit-neighbours": head,
    "fit-laplace": head,
    "score": score,
    "evaluate": evaluate,
    "uncertainty": uncertainty,
    "detect-failures": detect_failures,
    "curate": curate,
    "conformal": conformal,
    "estimate-accuracy": estimate_accuracy,
    "influence": influence,
    "prune": prune,
    "ood": ood,
    "active-learn": active_learn,
    "analyse": analyse,
    "explain": explain,
    "draw-maps": draw_maps,
    "evaluate-maps": evaluate_maps,
    "iqa": iqa,
    "report": report,
    "run": summary_of_recipe,
    "reproduce": summary_of_recipe,
}
"""By verb; a summary is given the stage, what was made, and the workspace."""
