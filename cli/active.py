"""The command that asks for labels: active-learn."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output import emit, frame_table

if TYPE_CHECKING:
    from pipeline.executors import Executor
    from stages.applications.active_runs import ActiveRuns
    from stages.applications.asking import Asking
    from stages.applications.lesson import LessonParams
    from store.catalog import FeatureStore

CLEAN = "clean"
"""What the test split is called among the tests."""

OF_RUNS = (
    *("rounds", "query", "start", "corrupted", "corruption", "limit"),
    *("executor", "gpus", "workers", "address"),
)
OF_ASKING = ("labels", "out")
"""Options that mean nothing with --ask, and without it."""


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        "active-learn",
        epilog="Example: intro-pipe active-learn --dataset cifar10 --strategy badge,entropy "
        "--model-kind f,h --seeds 0,1,2 --executor ray  ·  For a folder without labels: "
        "intro-pipe active-learn --dataset ./photos --ask 500",
    )(active_learn)


def active_learn(
    context: typer.Context,
    dataset: options.Dataset,
    strategy: Annotated[
        str,
        typer.Option(
            help="random, entropy, least-confidence, margin, bald, badge, core-set, "
            "core-set-gradients or k-means; several with commas."
        ),
    ] = "badge",
    model_kind: Annotated[
        str, typer.Option(help="Who is asked for doubts: f, h, or f,h for a run each.")
    ] = "f",
    rounds: Annotated[int, typer.Option(min=1, help="Trainings.")] = 20,
    query: Annotated[int, typer.Option(min=1, help="Labels asked for after each.")] = 1000,
    start: Annotated[
        int, typer.Option(min=2, help="Labels of the first one, the same for f and H.")
    ] = 100,
    seeds: Annotated[str, typer.Option(help="A run for each: 0,1,2.")] = "0",
    network: Annotated[
        str, typer.Option(help="As for train-sensing: resnet18, cnn2, file.py:factory, ...")
    ] = "resnet18",
    epochs: Annotated[
        int, typer.Option(min=1, help="Of a training, f's or H's, that does not get to 99 %.")
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Of Adam, for f.")] = 1e-4,
    head_lr: Annotated[float, typer.Option(help="Of Adam, for H.")] = 1e-3,
    layers: Annotated[str, typer.Option(help="Widths of H's hidden layers.")] = "300,100",
    corrupted: Annotated[
        str | None,
        typer.Option(help="A corrupted set to test on as well, e.g. cifar10c."),
    ] = None,
    corruption: Annotated[
        str, typer.Option(help="Which of its corruptions, at all severities.")
    ] = "gaussian_noise",
    ask: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead of a benchmark: so many images of a folder without labels that people "
            "are to label next, as a list and a contact sheet.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="With --ask: a CSV of sample_id and label. May be given again."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="With --ask: folder of the list. (default: to-label-N after N labels)"),
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 32,
    limit: options.Limit = None,
    device: options.Device = None,
    executor: options.ExecutorName = "local",
    gpus: options.Gpus = None,
    workers: options.Workers = None,
    address: options.Address = None,
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Learn from few labels: train, ask for those that would help most, train again.

    A checkpoint follows every round; the same command again goes on from the last one. Runs of
    several strategies, kinds and seeds are independent: --executor ray has them side by side. With
    --ask people label: see docs/active-learning.md.
    """
    from stages.applications.active_learning import RoundParams
    from stages.applications.active_runs import ActiveRuns, lessons_of
    from stages.applications.lesson import KINDS, LessonParams
    from stages.data.known import data_root_path
    from stages.data.registry import SourceSpec
    from stages.sensing.build import located
    from stages.sensing.trust import trust
    from store.catalog import FeatureStore

    _check_given(context, is_asking=ask is not None)
    trust(network)
    place, root = FeatureStore(store), str(data_root_path(data_root))
    lesson = LessonParams(
        network=located(network),
        epochs=epochs,
        batch=batch_size,
        lr=lr,
        head_lr=head_lr,
        layers=options.whole_numbers(layers, "--layers"),
    )
    kinds = [options.choice(kind, KINDS, "model kind") for kind in options.names(model_kind)]
    numbers = options.whole_numbers(seeds, "--seeds")
    lessons = lessons_of(lesson, options.names(strategy), kinds, numbers)
    if ask is not None:
        asking = _asking(lessons, dataset, root, image_size, labels or [], ask)
        its_device = options.device_of(device)
        _ask(place, asking, out, its_device, dry_run=dry_run, as_json=as_json)
        return
    source = SourceSpec(dataset, "train", root, image_size, limit)
    tests = {CLEAN: SourceSpec(dataset, "test", root, image_size)}
    if corrupted is not None:
        only = (corruption,)
        tests[corruption] = SourceSpec(corrupted, "test", root, image_size, corruptions=only)
    runs = ActiveRuns(lessons, RoundParams(rounds, query, start), source, tests)
    if dry_run:
        _say_plan(place, runs, as_json=as_json)
        return
    running, its_device = options.executor_of(executor, gpus, workers, address)
    if device:
        its_device = options.device_of(device)
    _run(place, runs, running, its_device, as_json=as_json)


def _check_given(context: typer.Context, *, is_asking: bool) -> None:
    """Raise ``InputError`` for an option that would do nothing."""
    from stages.errors import InputError

    for name in OF_RUNS if is_asking else OF_ASKING:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} is not for a run {'with' if is_asking else 'without'} --ask"
            )


def _asking(
    lessons: tuple[LessonParams, ...],
    dataset: str,
    root: str,
    image_size: int,
    labels: list[str],
    n: int,
) -> Asking:
    from pathlib import Path

    from stages.applications.asking import Asking, sample_ids_of
    from stages.applications.labels import read_labels
    from stages.data.folder import pool_source
    from stages.data.registry import existing_path, name_of
    from stages.errors import InputError

    if len(lessons) > 1:
        raise InputError("--ask takes one strategy, one model kind and one seed")
    folder = existing_path(dataset, Path(root))
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of images to ask labels for, found a file")
    source = pool_source(folder, name_of(folder), (image_size, image_size))
    known = {sample_id: row for row, sample_id in enumerate(sample_ids_of(source))}
    return Asking(lessons[0], source, read_labels(map(Path, labels), known), n)


def _ask(
    place: FeatureStore,
    asking: Asking,
    out: str | None,
    device: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from pathlib import Path

    from pipeline.journal import Journal
    from stages.applications.asking import SHEET, ask, check_place, copy_question

    n_labelled = len(asking.labels)
    folder = Path(out or f"to-label-{n_labelled}")
    result = asking.result_of(place)
    check_place(folder, result)
    if dry_run:
        n_left = asking.source.n_rows - n_labelled
        text = f"would choose {asking.n:,} of {n_left:,} images without a label: {result.name}"
        emit({"result": result.name, "out": str(folder)}, text, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        ask(place, asking, device, journal)
    path = copy_question(result, folder)
    card = result.card()
    text = (
        f"{result.name}: {asking.n:,} images to label, chosen by {card['strategy']} after "
        f"{n_labelled:,} labels{_counted(asking)}\nwrite the labels into {path}, beside "
        f"{folder / SHEET}; then the same command with --labels {path} in addition, and another "
        "--out, asks for the next ones"
    )
    if card.get("n_failed"):
        text += f"\nnot asked for, since they cannot be read: {card['n_failed']:,}"
    facts = {name: card[name] for name in ("strategy", "asked", "scores", "classes")}
    emit({"result": result.name, "list": str(path), **facts}, text, as_json=as_json)


def _counted(asking: Asking) -> str:
    """How many labels each class has, so that one that was mistyped is seen."""
    counts = sorted(Counter(asking.labels.values()).items())
    return f" ({', '.join(f'{name} {n:,}' for name, n in counts)})" if counts else ""


def _say_plan(place: FeatureStore, runs: ActiveRuns, *, as_json: bool) -> None:
    result = runs.result_of(place)
    result.refuse_other(runs.plan())
    names = [runs.run_of(place, lesson).name for lesson in runs.lessons]
    text = (
        f"would make {result.name}: {len(names)} runs of {runs.rounds.rounds} rounds, "
        f"{runs.rounds.n_labelled:,} labels each\n" + "\n".join(names)
    )
    emit({"result": result.name, "runs": names}, text, as_json=as_json)


def _run(
    place: FeatureStore, runs: ActiveRuns, executor: Executor, device: str, *, as_json: bool
) -> None:
    from pipeline.journal import Journal
    from stages.applications.active_runs import means_of, read_curves, run_all

    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        result = run_all(place, runs, executor, device, journal)
    curves = read_curves(result)
    last = curves[curves["round"] == curves["round"].max()]
    means = means_of(curves).assign(last=means_of(last)["mean"])
    text = (
        f"{result.name}: accuracy, mean over {runs.rounds.rounds} rounds, and in the last one "
        f"with {runs.rounds.n_labelled:,} labels\n{frame_table(means)}"
    )
    found = {
        "result": result.name,
        "location": result.storage.location,
        "means": means.to_dict(orient="records"),
        "curves": means_of(curves, ["labelled"]).to_dict(orient="records"),
    }
    emit(found, text, as_json=as_json)
