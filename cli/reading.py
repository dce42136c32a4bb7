"""Commands that read the store: evaluate, query, ls, status."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli import options
from cli.output import emit, note, size, table


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe evaluate --features cifar10c@resnet18")(evaluate)
    app.command(
        epilog="Example: intro-pipe query cifar10c@resnet18 --by corruption,severity "
        "--metric accuracy --metric ece"
    )(query)
    app.command("ls", epilog="Example: intro-pipe ls --json")(ls)
    app.command(epilog="Example: intro-pipe status --watch")(status)


def evaluate(
    features: Annotated[str, typer.Option("--features", help="A feature set of the store.")],
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            help="[LABEL=]NAME: a head of the store, and what to call it; may be given again. "
            "(default: the model's only head, as H)",
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Of the bootstrap over images; under 100, no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare f with heads: accuracy and calibration by (corruption, severity), and averaged.

    All seeds of a head are judged. A result that is there already is read, not computed again.
    """
    from cli.comparison import contenders_of, shown
    from pipeline.journal import Journal
    from stages.applications.evaluation import checked, evaluate, result_of
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    feature_set = place.open(features)
    contenders = contenders_of(place, feature_set, head or [])
    if dry_run:
        checked(feature_set, contenders)
        name = result_of(place, feature_set, contenders, n_resamples=resamples, seed=seed).name
        labels = ", ".join(["f", *(each.label for each in contenders)])
        emit(
            {"result": name}, f"would judge {labels} on {feature_set.name}: {name}", as_json=as_json
        )
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        result = evaluate(
            place, feature_set, contenders, n_resamples=resamples, seed=seed, journal=journal
        )
    found: dict[str, Any] = {
        "result": result.artifact.name,
        "location": result.artifact.storage.location,
        "title": result.card["title"],
        "average": result.average.to_dict(orient="records"),
        "by_group": result.by_group.to_dict(orient="records"),
    }
    emit(found, shown(result), as_json=as_json)


def query(
    features: Annotated[str, typer.Argument(help="A feature set, e.g. cifar10c@resnet18.")],
    by: Annotated[
        str | None, typer.Option("--by", help="Columns that group the rows, commas between.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="accuracy, ece, mce, brier, nll, ...")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Only rows with COLUMN=VALUE, or VALUE,VALUE."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet. (default: by --out's ending)"),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="File to write to.")] = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Ask stored features a question; Dask answers, one shard at a time."""
    from cli.conditions import conditions
    from cli.frames import form_of, write_frame
    from pipeline.progress import Progress
    from stages.applications.recognition import query
    from store.catalog import FeatureStore

    feature_set = FeatureStore(store).open(features)
    with Progress("query", feature_set.n_rows, unit="rows") as progress:
        frame = query(
            feature_set,
            by=options.names(by),
            metrics=options.names(",".join(metric or ["accuracy"])),
            where=conditions(where or [], feature_set.schema),
            tick=progress.advance,
        )
    if frame.attrs["n_left_out"]:
        note(f"{frame.attrs['n_left_out']:,} rows left out: no label, or not read (see `status`)")
    write_frame(frame, form or ("json" if as_json else form_of(out)), out)


def ls(store: options.Store = options.DEFAULT_STORE, as_json: options.AsJson = False) -> None:
    """List feature sets, models, heads, results and reports of a store."""
    from store.catalog import FeatureStore
    from store.contents import contents

    rows = contents(FeatureStore(store).require())
    shown = [{**row, "size": size(row["bytes"])} for row in rows]
    columns = ["kind", "name", "state", "rows", "size"]
    if any(row["state"] != "complete" for row in rows):
        columns.append("detail")
    text = table(shown, columns) if rows else f"{store} is empty"
    emit(rows, text, as_json=as_json)


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the runs that are at work, until they end.")
    ] = False,
    shards: Annotated[
        bool, typer.Option("--shards", help="What each shard of the newest run cost, and where.")
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Say what is complete, partial, stale or damaged and why, and how the last runs ended.

    What is at work says what its workers do. Files are looked at, not read: `verify` does that.
    """
    from cli.running import follow, runs_told, shards_told
    from cli.states import states
    from stages.errors import InputError
    from store.catalog import FeatureStore

    if watch and (shards or as_json):
        raise InputError("--watch is for people: leave out --shards and --json, or --watch")
    place = FeatureStore(store).require()
    if watch:
        follow(place.location)
        return
    if shards:
        emit(*shards_told(place.location), as_json=as_json)
        return
    rows = states(place)
    past, text_of_runs = runs_told(place.location)
    text = table(rows, ["kind", "name", "state", "detail"]) if rows else f"{store} is empty"
    emit({"contents": rows, "runs": past}, text + text_of_runs, as_json=as_json)
