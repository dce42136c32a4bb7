"""The command that trains the network f: train-sensing."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli import options
from cli.output import emit


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        "train-sensing",
        epilog="Example: intro-pipe train-sensing --dataset cifar10 --network resnet18",
    )(train_sensing)


def train_sensing(
    dataset: options.Dataset,
    network: Annotated[
        str | None,
        typer.Option(
            help="resnet18, resnet34, resnet50, resnet101, vgg16, cnn2, torchvision:NAME, "
            "file.py:factory or package.module:factory. (default: the preset's)"
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="paper: 200 epochs, flips. paper-crop: crops as well. quick: cnn2, 20 epochs."
        ),
    ] = "paper",
    name: Annotated[
        str | None, typer.Option(help="What to call the model. (default: its network)")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Instead of the preset's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Instead of the preset's.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Instead of the preset's.")] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="none, flip or crop_flip, instead of the preset's.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="steps or one-cycle, instead of the preset's.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    held_out: Annotated[
        int, typer.Option(min=0, help="Rows, drawn by the seed, that are kept from the network.")
    ] = 0,
    held_out_until: Annotated[
        float, typer.Option(help="Share of the epochs after which they join the others.")
    ] = 1.0,
    keep_every: Annotated[
        int | None,
        typer.Option(min=1, help="Keep NAME-epoch-001 and every so many epochs on as models too."),
    ] = None,
    last_layer: Annotated[
        str | None, typer.Option(help="The last linear layer, where that is not plain.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 32,
    device: options.Device = None,
    limit: options.Limit = None,
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the network f that senses, by the paper's recipe.

    A checkpoint follows every epoch; the same command again goes on from the last one.
    """
    from pipeline.journal import Journal
    from stages.data.known import data_root_path
    from stages.sensing.models import model_name, train_model, training_plan, training_sources
    from stages.sensing.recipe import params_from, planned_params
    from stages.sensing.snapshots import snapshot_epochs, snapshot_name
    from stages.sensing.trust import trust
    from store.catalog import FeatureStore

    changes: dict[str, Any] = {
        "network": network,
        "epochs": epochs,
        "batch": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "augmentation": augmentation,
        "schedule": schedule,
        "precision": precision,
        "seed": seed,
        "held_out": held_out,
        "held_out_until": held_out_until,
    }
    params = params_from(preset, **changes)
    trust(params.network)
    train, test = training_sources(dataset, str(data_root_path(data_root)), image_size, limit)
    title = name or model_name(params.network)
    place = FeatureStore(store)
    kept = snapshot_epochs(params.epochs, keep_every) if keep_every else ()
    snapshots = [snapshot_name(title, epoch) for epoch in kept]
    if dry_run:
        plan = training_plan(params, train, last_layer)
        place.artifact("model", title).refuse_other(plan)
        n_images = plan["inputs"]["source"]["n_rows"]
        recipe = ", ".join(f"{name} {value}" for name, value in planned_params(params).items())
        text = f"would train {title} on {n_images:,} images ({recipe})"
        text += f"; would keep {len(snapshots)} snapshots" if snapshots else ""
        emit({"name": title, "plan": plan, "snapshots": snapshots}, text, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        report = train_model(
            place,
            title,
            params,
            train=train,
            test=test,
            device=options.device_of(device),
            last_layer=last_layer,
            journal=journal,
            keep_every=keep_every,
        )
    card = report.card
    test_accuracy = "none" if card["test_accuracy"] is None else f"{card['test_accuracy']:.4f}"
    text = (
        f"model {title}: accuracy {card['train_accuracy']:.4f} on train, "
        f"{test_accuracy} on test, M = {card['M']:.4f}; "
        f"{report.n_units_run} epochs run now"
    )
    text += f"; {len(snapshots)} snapshots, last {snapshots[-1]}" if snapshots else ""
    emit({"model": title, "snapshots": snapshots, **_facts(card)}, text, as_json=as_json)


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key not in ("history", "files")}
