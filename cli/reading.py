"""Commands that read the store: evaluate, query, ls, status, verify."""

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
    app.command(epilog="Example: intro-pipe verify cifar10c@resnet18")(verify)


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
    text = table(shown, ["kind", "name", "state", "rows", "size"]) if rows else f"{store} is empty"
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
    """Say what is complete, partial or at work, what workers do, and how the last runs ended."""
    from cli.running import follow, runs_told, shards_told
    from store.catalog import FeatureStore
    from store.contents import contents

    place = FeatureStore(store).require()
    if watch:
        follow(place.location)
        return
    if shards:
        emit(*shards_told(place.location), as_json=as_json)
        return
    rows = contents(place)
    past, text_of_runs = runs_told(place.location)
    text = table(rows, ["kind", "name", "state", "detail"]) if rows else f"{store} is empty"
    emit({"contents": rows, "runs": past}, text + text_of_runs, as_json=as_json)


def verify(
    features: Annotated[
        list[str] | None,
        typer.Argument(
            help="Feature sets, or folders that `corrupt` wrote. (default: all of the store)"
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take hurt shards back, to be computed again.")
    ] = False,
    dry_run: options.DryRun = False,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Read every byte and hold it against the receipts. Exit code 1 where something is wrong."""
    from dataclasses import asdict
    from pathlib import Path

    from pipeline.progress import Progress
    from store.catalog import ARTIFACT_KINDS, FeatureStore
    from store.shardset import ShardSet
    from store.storage import LocalStorage
    from store.verify import repair as take_back
    from store.verify import verify_artifact, verify_feature_set, verify_files, verify_plans

    place = FeatureStore(store)
    if not features:
        place.require()
    folders = [name for name in features or [] if (Path(name) / "plan.json").is_file()]
    named = [place.resolve(name) for name in features or [] if name not in folders]
    sets = named if features else list(place.feature_sets())
    kinds = () if features else ARTIFACT_KINDS
    artifacts = [artifact for kind in kinds for artifact in place.artifacts(kind)]
    problems = [] if features else list(verify_plans(place))
    problems += [problem for artifact in artifacts for problem in verify_artifact(artifact)]
    for folder in folders:
        problems += verify_files(ShardSet.open(LocalStorage(folder)))
    with Progress("verify", sum(len(found) for found in sets), unit="rows") as progress:
        for found in sets:
            here = list(verify_feature_set(found, progress.advance))
            problems += here
            if repair and not dry_run and (shards := take_back(found.shard_set, here)):
                note(f"{found.name}: {len(shards)} shards taken back; run extract again")
    wrong = [problem for problem in problems if not problem.is_harmless]
    summary = (
        f"checked {len(sets) + len(folders)} sets and {len(artifacts)} models, heads, results and "
        f"reports: {len(wrong)} wrong, {len(problems) - len(wrong)} to note"
    )
    rows = [asdict(problem) | {"harmless": problem.is_harmless} for problem in problems]
    shown = table(rows, ["set_name", "kind", "key", "detail"])
    text = f"{shown}\n{summary}" if rows else summary
    emit({"problems": rows, "wrong": len(wrong)}, text, as_json=as_json)
    if wrong:
        sys.exit(1)
