"""Commands about images: datasets, corrupt, extract."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output import emit, note, size, table

if TYPE_CHECKING:
    from pipeline.runner import RunReport
    from store.featureset import FeatureSet


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe datasets --download cifar10c")(datasets)
    app.command(epilog="Example: intro-pipe corrupt --dataset cifar10")(corrupt)
    app.command(epilog="Example: intro-pipe extract --dataset cifar10c --gpus 8")(extract)


def datasets(
    data_root: options.DataRoot = None,
    download: Annotated[
        str | None, typer.Option("--download", help="Fetch this data set and check it.")
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """List the data sets that are known, which of them are here, and how to get the others."""
    from dataclasses import asdict

    from stages.data.download import download as fetch
    from stages.data.known import data_root_path
    from stages.data.registry import known_datasets

    root = data_root_path(data_root)
    if download and dry_run:
        note(f"would fetch {download} into {root}")
    elif download:
        fetch(download, root, _download_progress())
    infos = known_datasets(root)
    rows = [
        {
            "name": info.name,
            "images": " + ".join(f"{n:,} {split}" for split, n in info.n_rows.items()) or "-",
            "classes": len(info.class_names),
            "here": "yes" if info.is_on_disk else "no",
            "what it is, or how to get it": info.problem or info.how_to_get or info.description,
        }
        for info in infos
    ]
    emit([asdict(info) for info in infos], f"{table(rows)}\n\nData root: {root}", as_json=as_json)


def _download_progress() -> Callable[[str, int, int], None]:
    """A line every few seconds: file, bytes, share."""
    last = [time.monotonic()]

    def show(name: str, n_done: int, n_total: int) -> None:
        if time.monotonic() - last[0] > 3 or n_done == n_total:
            last[0] = time.monotonic()
            share = f" of {size(n_total)} ({n_done / n_total:.0%})" if n_total else ""
            note(f"{name}: {size(n_done)}{share}")

    return show


def corrupt(
    dataset: options.Dataset,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    collection: Annotated[
        str,
        typer.Option(
            help="cifar10c: its 19 corruptions. cure: the six CURE-like distortions. "
            "rotations: 12, 24, ... 180 degrees."
        ),
    ] = "cifar10c",
    corruptions: Annotated[
        str | None, typer.Option(help="Only these, with commas between. (default: all)")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Folder to write. (default: DATASET-c, -cure or -rotations under the data root)",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    limit: options.Limit = None,
    store: Annotated[
        str,
        typer.Option(envvar="INTRO_PIPE_STORE", help="Whose journal remembers the run."),
    ] = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    executor: options.ExecutorName = "ray",
    workers: options.Workers = None,
    memory: options.Memory = None,
    address: options.Address = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a CIFAR-10-C-style set, in its exact layout, from any labelled data set.

    Every image is corrupted in 19 ways at 5 severities with CIFAR-10-C's own constants; other
    collections have other levels. The same command again computes only what is missing.
    """
    from pipeline.journal import Journal
    from stages.data.corrupt import Corrupt
    from stages.data.corruption_set import BYTES_OF_IMAGE, corruption_folder, write_corrupted
    from stages.data.known import data_root_path
    from stages.data.registry import SourceSpec
    from store.catalog import FeatureStore

    root = data_root_path(data_root)
    source = SourceSpec(dataset, split, str(root), limit=limit)
    stage = Corrupt(
        source,
        options.names(corruptions),
        seed,
        options.choice(collection, ("cifar10c", "cure", "rotations"), "--collection"),
    )
    folder = out or corruption_folder(stage, root)
    workforce, _ = options.executor_of(executor, 0, workers, address, memory)
    if dry_run:
        plan = stage.plan()
        n_bytes = plan["n_rows"] * BYTES_OF_IMAGE
        text = f"would write {plan['n_rows']:,} images ({size(n_bytes)}) to {folder}"
        emit({"folder": folder, "bytes": n_bytes, "plan": plan}, text, as_json=as_json)
        return
    place = FeatureStore(store)
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        shard_set, report = write_corrupted(place, stage, folder, workforce, journal)
    text = f"{folder}: {shard_set.n_rows:,} images; {_work_done(report, 'corruptions')}"
    emit({"folder": folder, **report.to_dict()}, text, as_json=as_json)


def extract(
    dataset: options.Dataset,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    model: Annotated[
        str | None,
        typer.Option(help="A model of the store. (default: the one trained for this data)"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="A network that is not in the store yet: resnet18, torchvision:NAME, "
            "file.py:factory or package.module:factory."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Its weights: .safetensors, or a plain state dict.")
    ] = None,
    last_layer: Annotated[
        str | None, typer.Option(help="Its last linear layer, where that is not plain.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Its normalisation. (default: 0.4914,0.4822,0.4465)")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Its normalisation. (default: 0.2023,0.1994,0.2010)")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Its input, in pixels. (default: 32)")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Another layer, whose per-image gradients are stored as well."),
    ] = None,
    layer_loss: Annotated[
        str, typer.Option(help="Of those gradients, as in train-head.")
    ] = "mse-m",
    project: Annotated[
        int | None, typer.Option(min=1, help="Project those gradients at random to this size.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (logits stay fp32).")] = "fp32",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once.")] = None,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Images in a shard: the unit of writing and resuming.")
    ] = 10_000,
    limit: options.Limit = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Compute only those rows again whose image could not be read. Where files were "
            "mended since, rows of all other images are taken over.",
        ),
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    executor: options.ExecutorName = "ray",
    gpus: options.Gpus = None,
    workers: options.Workers = None,
    memory: options.Memory = None,
    address: options.Address = None,
    device: options.Device = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Send every image through the network once; keep features and logits in the store.

    Everything after this reads the store. The same command again computes only what is missing.
    """
    from pipeline.journal import Journal
    from stages.data.registry import SourceSpec
    from stages.reflection.extract import Extract, extract
    from stages.reflection.named_layer import NamedLayer
    from stages.reflection.retry import retry_failed, sets_to_retry
    from stages.sensing.models import ModelRequest, choose
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    workforce, default_device = options.executor_of(executor, gpus, workers, address, memory)
    request = ModelRequest(
        model,
        network,
        weights,
        last_layer,
        options.channels(mean, "--mean"),
        options.channels(std, "--std"),
        image_size,
    )
    chosen = choose(place, request, SourceSpec(dataset, split, data_root or "", limit=limit))
    if network and not (mean and std):
        note(f"{network}: CIFAR-10's normalisation is taken; --mean and --std name another")
    stage = Extract(
        chosen.source,
        chosen.card,
        chosen.weights,
        options.choice(precision, ("fp32", "bf16"), "--precision"),
        shard_rows,
        options.device_of(device) if device else default_device,
        batch_size,
        NamedLayer(layer, layer_loss, project) if layer else None,
    )
    if dry_run:
        plan = stage.plan()
        preview = place.preview(plan)
        if retry:
            there, before = sets_to_retry(place, plan)
            preview["rows_to_retry"] = there.shard_set.n_failed_rows() if there else 0
            preview["taken_from"] = before.name if before else None
            note(
                f"would try {preview['rows_to_retry']:,} rows again; what is missing would be "
                f"taken from {preview['taken_from'] or 'no other set'}, where images are the same"
            )
        text = (
            f"would extract {preview['rows_to_do']:,} of {preview['n_rows']:,} images "
            f"({preview['shards_to_do']} shards, {size(preview['bytes_to_write'])}) "
            f"to {preview['location']}, with {workforce.description}"
        )
        emit({**preview, "executor": workforce.description}, text, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        make = retry_failed if retry else extract
        feature_set, report = make(place, stage, workforce, journal, chosen.take_in)
    for line in place.siblings(feature_set):
        note(line)
    work = _rows_mended(feature_set) if retry else _work_done(report, "shards")
    text = f"{feature_set.name}: {feature_set.n_rows:,} rows; {work}"
    if report.n_failed_rows:
        text += (
            f"; {report.n_failed_rows} images could not be used: see the column `status`, and "
            "--retry-failed once they can be"
        )
    emit({"feature_set": feature_set.name, **report.to_dict()}, text, as_json=as_json)


def _rows_mended(feature_set: FeatureSet) -> str:
    receipts = list(feature_set.shard_set.receipts())
    n_mended = sum(len(each.get("retried", {}).keys() - each["failed"].keys()) for each in receipts)
    return f"{n_mended} of them failed once and are there now"


def _work_done(report: RunReport, units: str) -> str:
    if report.n_computed == 0:
        return f"all {report.n_shards} {units} were there already"
    speed = f"{report.rows_per_s:,.0f} images/s"
    return f"{report.n_computed} of {report.n_shards} {units} computed now ({speed})"
