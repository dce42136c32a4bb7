"""Commands that train: train-sensing for f, train-head for H."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli import options
from cli.output import emit


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(
        "train-sensing",
        epilog="Example: intro-pipe train-sensing --dataset cifar10 --network resnet18",
    )(train_sensing)
    app.command(
        "train-head", epilog="Example: intro-pipe train-head --features cifar10-train@resnet18"
    )(train_head)


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
    from dataclasses import asdict

    from pipeline.journal import Journal
    from stages.data.known import data_root_path
    from stages.sensing.models import model_name, train_model, training_plan, training_sources
    from stages.sensing.recipe import params_from
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
    }
    params = params_from(preset, **changes)
    train, test = training_sources(dataset, str(data_root_path(data_root)), image_size, limit)
    title = name or model_name(params.network)
    place = FeatureStore(store)
    if dry_run:
        plan = training_plan(params, train, last_layer)
        place.artifact("model", title).refuse_other(plan)
        n_images = plan["inputs"]["source"]["n_rows"]
        recipe = ", ".join(f"{name} {value}" for name, value in asdict(params).items())
        text = f"would train {title} on {n_images:,} images ({recipe})"
        emit({"name": title, "plan": plan}, text, as_json=as_json)
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
        )
    card = report.card
    test_accuracy = "none" if card["test_accuracy"] is None else f"{card['test_accuracy']:.4f}"
    text = (
        f"model {title}: accuracy {card['train_accuracy']:.4f} on train, "
        f"{test_accuracy} on test, M = {card['M']:.4f}; "
        f"{report.n_units_run} epochs run now"
    )
    emit({"model": title, **_facts(card)}, text, as_json=as_json)


def train_head(
    features: Annotated[
        str, typer.Option("--features", help="Features of the training set, e.g. cifar10-train@f.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call the head. (default: MODEL-h)")
    ] = None,
    layers: Annotated[str, typer.Option(help="Widths of the hidden layers.")] = "300,100",
    loss: Annotated[
        str,
        typer.Option(
            help="Whose gradient H reads: mse-m, ce, bce, l1, l1-m, smooth-l1, smooth-l1-m, "
            "nll, nll-logsoftmax, soft-margin or soft-margin-01."
        ),
    ] = "mse-m",
    variant: Annotated[str, typer.Option(help="single-pass, stack or sum.")] = "single-pass",
    scaling: Annotated[str, typer.Option(help="minmax, maxabs or none.")] = "minmax",
    dropout: Annotated[float, typer.Option(help="After each hidden layer.")] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 200,
    lr: Annotated[float, typer.Option(help="Of the first epochs.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 5e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order.")] = 0,
    device: options.Device = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the head H, which predicts from introspective gradients made of stored features.

    No image is read. A checkpoint follows every epoch; the same command again goes on.
    """
    from pipeline.journal import Journal
    from stages.introspection.head import HeadSpec
    from stages.introspection.heads import head_plan, head_spec, train_head
    from stages.introspection.train import HeadParams
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    feature_set = place.open(features)
    spec: HeadSpec = head_spec(
        feature_set,
        layers=options.widths(layers),
        loss=loss,
        variant=variant,
        scaling=scaling,
        dropout=dropout,
    )
    params = HeadParams(epochs=epochs, learning_rate=lr, weight_decay=weight_decay, seed=seed)
    title = name or f"{feature_set.plan['inputs']['model']['name']}-h"
    if dry_run:
        plan = head_plan(feature_set, spec, params)
        place.artifact("head", title).refuse_other(plan)
        text = f"would train head {title} on {feature_set.n_rows:,} rows of {feature_set.name}"
        emit({"name": title, "plan": plan}, text, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        report = train_head(
            place,
            feature_set,
            title,
            spec,
            params,
            device=options.device_of(device),
            journal=journal,
        )
    card = report.card
    text = (
        f"head {title}: accuracy {card['train_accuracy']:.4f} on its training rows, "
        f"M = {card['spec']['M']:.4f}; {report.n_units_run} epochs run now"
    )
    emit({"head": title, **_facts(card)}, text, as_json=as_json)


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key not in ("history", "files")}
