"""Commands that read the store: query, ls, status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.completion import completing, names_in_store
from cli.frames import TableOptions
from cli.output import emit, note
from cli.plain_help import LIST
from cli.scored import Training, head_option, scored_by
from pipeline.terminal import counted, size
from stages.reflection.conditions import WHERE
from stages.verbs import STORE

if TYPE_CHECKING:
    from stages.scores.asked_scores import Scored
    from store.catalog import FeatureStore
    from store.featureset import FeatureSet


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(
        epilog="Example: intro-pipe query cifar10c@resnet18 --by corruption,severity "
        "--metric accuracy --metric ece",
        rich_help_panel=STORE,
    )(options.grouped(query))
    app.command("ls", epilog="Example: intro-pipe ls --json", rich_help_panel=STORE)(ls)
    app.command(epilog="Example: intro-pipe status --watch", rich_help_panel=STORE)(status)


@dataclass(frozen=True)
class ScoreOptions:
    """Scores to average, and of what."""

    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar=LIST,
            help="Scores to average, separated by commas: energy, exgrad, msp, knn, ...",
        ),
    ] = None
    training: Training = None
    head: Annotated[
        list[str] | None,
        head_option(
            "Head whose scores are averaged as well, as [LABEL=]NAME, in columns LABEL_SCORE; may "
            "be repeated. The first of its seeds is used."
        ),
    ] = None


def query(
    features: Annotated[
        str,
        typer.Argument(
            help="Feature set, e.g. cifar10c@resnet18.",
            autocompletion=completing(names_in_store("features")),
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar=LIST, help="Columns to group the rows by, separated by commas."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Metric to compute: accuracy, ece, mce, brier, nll, ... (default: accuracy, or "
            "none with --score)",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help=WHERE),
    ] = None,
    *,
    asked: ScoreOptions,
    shown: TableOptions,
    store: options.Store = options.DEFAULT_STORE,
) -> None:
    """Compute metrics of f, and mean scores of f and of heads, by groups of rows.

    Scores need no labels; beside metrics, they are averaged over the rows with labels. Threads
    compute one shard at a time each.
    """
    from pipeline.progress import Progress
    from stages.evaluation.recognition import query
    from stages.reflection.conditions import conditions
    from store.catalog import FeatureStore
    from store.failures import failures_of, is_failed

    shown = shown.checked()
    catalog = FeatureStore(store)
    feature_set = catalog.open(features)
    metrics = options.names(",".join(metric or ([] if asked.score else ["accuracy"])))
    chosen = conditions(where or [], feature_set.schema)
    scores = _scores(catalog, feature_set, asked)
    if is_failed(feature_set.shard_set):
        note(f"{feature_set.name}: {failures_of(feature_set.shard_set)}")
    with Progress("query", feature_set.n_rows, unit="rows") as progress:
        answer = query(
            feature_set,
            by=options.names(by),
            metrics=metrics,
            scores=scores,
            where=chosen,
            tick=progress.advance,
        )
    if answer.n_left_out:
        n_rows = counted(answer.n_left_out, "row")
        reason = "no label, or failed" if metrics else "failed"
        note(f"{n_rows} left out: {reason} (see `status`)")
    shown.write(answer.rows)


def _scores(
    store: FeatureStore, feature_set: FeatureSet, asked: ScoreOptions
) -> tuple[Scored, ...]:
    """The scores by name; imports them, which takes a while, only if there are any."""
    from stages.errors import InputError

    if names := options.names(asked.score):
        return scored_by(store, feature_set, names, asked.training, asked.head)
    for option, value in (("--training", asked.training), ("--head", asked.head)):
        if value:
            raise InputError(f"{option} has no effect without --score")
    return ()


def ls(store: options.Store = options.DEFAULT_STORE, as_json: options.AsJson = False) -> None:
    """List feature sets, models, heads, results and reports of a store."""
    from cli.states import text_of
    from stages.contents import contents
    from store.catalog import FeatureStore

    rows = contents(FeatureStore(store).require())
    shown = [{**row, "size": size(row["bytes"])} for row in rows]
    columns = ["kind", "name", "state", "rows", "size"]
    if any(row["state"] != "complete" for row in rows):
        columns.append("progress")
    text = text_of(shown, columns) if rows else f"{store} is empty"
    emit(rows, text, as_json=as_json)


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the running commands until they end.")
    ] = False,
    shards: Annotated[
        bool,
        typer.Option(
            "--shards", help="Print where each shard of the newest run was computed, and its cost."
        ),
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Show what is complete, partial, stale or damaged and why, and how the last runs ended.

    For a running command it shows what the workers do. File sizes are checked, not contents; use
    `verify` for that.
    """
    from cli.running import follow, runs_report, shards_report
    from cli.states import states, text_of
    from stages.errors import InputError
    from store.catalog import FeatureStore

    if watch and (shards or as_json):
        raise InputError("--watch cannot be combined with --shards or --json")
    place = FeatureStore(store).require()
    if watch:
        follow(place.location)
        return
    if shards:
        emit(*shards_report(place.location), as_json=as_json)
        return
    rows = states(place)
    past, text_of_runs = runs_report(place.location)
    columns = ["kind", "name", "state", "progress"]
    text = text_of(rows, columns) if rows else f"{store} is empty"
    emit({"contents": rows, "runs": past}, text + text_of_runs, as_json=as_json)
