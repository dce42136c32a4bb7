"""Scores that commands without a stage are asked for: the options, and what they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.completion import completing, names_in_store

if TYPE_CHECKING:
    from stages.scores.asked_scores import Scored
    from store.catalog import FeatureStore
    from store.featureset import FeatureSet

Training = Annotated[
    str | None,
    typer.Option(
        "--training",
        metavar="FEATURES",
        help="Features of the training images, for scores that are fitted to them.",
        autocompletion=completing(names_in_store("features")),
    ),
]


def head_option(help_text: str) -> typer.models.OptionInfo:
    """The option ``--head``."""
    option: typer.models.OptionInfo = typer.Option(
        "--head",
        help=help_text,
        metavar="[LABEL=]NAME",
        autocompletion=completing(names_in_store("head")),
    )
    return option


def scored_by(
    store: FeatureStore,
    feature_set: FeatureSet,
    names: Sequence[str],
    training: str | None,
    heads: Sequence[str] | None,
) -> tuple[Scored, ...]:
    """The scores of f and of heads, fitted to training rows with a progress bar."""
    from stages.scores.asked_scores import asked_scores, check_asked

    check_asked(names, training)
    if training is None and not heads:
        return asked_scores(store, feature_set, names)
    from pydantic import TypeAdapter

    from pipeline.fields import LabelledList
    from pipeline.progress import Progress

    labelled = TypeAdapter(LabelledList).validate_python(heads or [])
    if training is None:
        return asked_scores(store, feature_set, names, heads=labelled)
    rows = store.open(training)
    n_rows = rows.n_rows * (1 + len(labelled))
    with Progress(f"fit to {rows.name}", n_rows, unit="rows") as progress:
        return asked_scores(store, feature_set, names, rows, labelled, progress.advance)
