"""Commands that make heads of stored features: train-head, fit-temperature, fit-neighbours."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, note

if TYPE_CHECKING:
    from store.catalog import FeatureStore
    from store.featureset import FeatureSet
    from store.plan import Plan

TrainingFeatures = Annotated[
    str, typer.Option("--features", help="Features of the training set, e.g. cifar10-train@f.")
]
LabelledFeatures = Annotated[
    str, typer.Option("--features", help="Labelled features that f was not trained on.")
]
Loss = Annotated[
    str,
    typer.Option(
        help="Whose gradient is read: mse-m, ce, bce, l1, l1-m, smooth-l1, smooth-l1-m, nll, "
        "nll-logsoftmax, soft-margin or soft-margin-01."
    ),
]
Variant = Annotated[str, typer.Option(help="Of the gradient: single-pass, stack or sum.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(
        "train-head", epilog="Example: intro-pipe train-head --features cifar10-train@resnet18"
    )(train_head)
    app.command(
        "fit-temperature",
        epilog="Example: intro-pipe fit-temperature --features cifar10-test@resnet18",
    )(fit_temperature)
    app.command(
        "fit-neighbours",
        epilog="Example: intro-pipe fit-neighbours --features cifar10-train@resnet18 "
        "--reads reflection",
    )(fit_neighbours)


def train_head(
    features: TrainingFeatures,
    name: Annotated[
        str | None, typer.Option(help="What to call the head. (default: MODEL-h)")
    ] = None,
    reads: Annotated[
        str, typer.Option(help="reflection for H; features or features+logits for controls.")
    ] = "reflection",
    layers: Annotated[
        str, typer.Option(help="Widths of the hidden layers; none for no hidden layer.")
    ] = "300,100",
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a compact first layer, for many classes: rank x (classes + features) "
            "parameters. (default: the paper's full layer)",
        ),
    ] = None,
    loss: Loss = "mse-m",
    variant: Variant = "single-pass",
    scaling: Annotated[
        str, typer.Option(help="Of each row that is read: minmax, maxabs or none.")
    ] = "minmax",
    dropout: Annotated[float, typer.Option(help="After each hidden layer.")] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Of the first epochs.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 5e-3,
    seeds: Annotated[str, typer.Option(help="A head for each, trained together: 0,1,2.")] = "0",
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 for the products of the training.")
    ] = "fp32",
    rows: Annotated[
        str, typer.Option(help="all, or held-out: those that the network was not trained on.")
    ] = "all",
    device: options.Device = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the head H, which predicts from introspective gradients made of stored features.

    No image is read. A checkpoint follows every epoch; the same command again goes on.
    """
    from pipeline.journal import Journal
    from stages.introspection.heads import (
        ROWS,
        check_size,
        head_plan,
        head_spec,
        train_head,
        training_rows,
    )
    from stages.introspection.recipe import PRECISIONS, HeadParams
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    feature_set = place.open(features)
    spec = head_spec(
        feature_set,
        layers=options.whole_numbers(layers, "--layers"),
        reads=reads,
        loss=loss,
        variant=variant,
        scaling=scaling,
        dropout=dropout,
        rank=rank,
    )
    params = HeadParams(
        epochs=epochs,
        batch_rows=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        seeds=options.whole_numbers(seeds, "--seeds"),
        precision=options.choice(precision, PRECISIONS, "precision"),
    )
    which = options.choice(rows, ROWS, "rows")
    title = name or f"{_model(feature_set)}-h"
    if dry_run:
        check_size(spec, params)
        plan = head_plan(feature_set, spec, params, rows=which)
        chosen = training_rows(place, feature_set, which)
        n_rows = feature_set.n_rows if isinstance(chosen, slice) else len(chosen)
        _say_plan(place, title, plan, f"train head {title} on {n_rows:,} rows", as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        report = train_head(
            place,
            feature_set,
            title,
            spec,
            params,
            rows=which,
            device=options.device_of(device),
            journal=journal,
        )
    card = report.card
    accuracies = ", ".join(f"{accuracy:.4f}" for accuracy in card["train_accuracy"])
    M = card["spec"]["M"]
    text = f"head {title}: accuracy {accuracies} on its training rows" + (
        "" if M is None else f", M = {M:.4f}"
    )
    text += f"; {report.n_units_run} epochs run now"
    emit({"head": title, **_facts(card)}, text, as_json=as_json)


def fit_temperature(
    features: LabelledFeatures,
    name: Annotated[
        str | None, typer.Option(help="What to call it. (default: MODEL-temperature)")
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit the one number that divides f's logits for calibration (Guo et al., 2017).

    It minimises the negative log-likelihood of the labels.
    """
    from pipeline.journal import Journal
    from stages.introspection.heads import fit_temperature, temperature_plan
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    feature_set = place.open(features)
    title = name or f"{_model(feature_set)}-temperature"
    if dry_run:
        what = f"fit {title} on {feature_set.n_rows:,} rows"
        _say_plan(place, title, temperature_plan(feature_set), what, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        card = fit_temperature(place, feature_set, title, journal=journal)
    if card.get("split") == "train":
        note("fitted on training images: f is surer there than on new ones")
    text = (
        f"head {title}: T = {card['temperature']:.4f}, negative log-likelihood "
        f"{card['nll_before']:.4f} -> {card['nll_after']:.4f} on {card['train_rows']:,} rows"
    )
    emit({"head": title, **_facts(card)}, text, as_json=as_json)


def fit_neighbours(
    features: TrainingFeatures,
    name: Annotated[
        str | None, typer.Option(help="What to call it. (default: MODEL-10nn-features)")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many neighbours vote.")] = 10,
    reads: Annotated[
        str, typer.Option(help="What is compared: features, reflection or features+logits.")
    ] = "features",
    loss: Loss = "mse-m",
    variant: Variant = "single-pass",
    scaling: Annotated[
        str | None,
        typer.Option(
            help="Of each row: minmax, maxabs, none. (default: minmax for the reflection, or none)"
        ),
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Let the nearest training rows vote, by Euclidean distance; a share of votes is a probability.

    Nothing is copied: predicting reads the training features from the store.
    """
    from pipeline.journal import Journal
    from stages.introspection.heads import fit_neighbours, neighbours_plan, neighbours_reading
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    feature_set = place.open(features)
    title = name or f"{_model(feature_set)}-{k}nn-{reads}"
    choice: dict[str, Any] = {  # Any: strings, or None
        "reads": reads,
        "loss": loss,
        "variant": variant,
        "scaling": scaling,
    }
    if dry_run:
        plan = neighbours_plan(feature_set, neighbours_reading(feature_set, **choice), k=k)
        what = f"fit {title} on {feature_set.n_rows:,} rows"
        _say_plan(place, title, plan, what, as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        card = fit_neighbours(place, feature_set, title, k=k, **choice, journal=journal)
    text = f"head {title}: the {k} nearest of {card['train_rows']:,} rows vote, by their {reads}"
    emit({"head": title, **_facts(card)}, text, as_json=as_json)


def _say_plan(place: FeatureStore, title: str, plan: Plan, what: str, *, as_json: bool) -> None:
    place.artifact("head", title).refuse_other(plan)
    text = f"would {what} of {plan['inputs']['features']}"
    emit({"name": title, "plan": plan}, text, as_json=as_json)


def _model(feature_set: FeatureSet) -> str:
    return str(feature_set.plan["inputs"]["model"]["name"])


def _facts(card: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {key: value for key, value in card.items() if key not in ("history", "files")}
