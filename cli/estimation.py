"""The printed summary of estimated accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.comparison import files_and_page
from cli.output import note, table
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from stages.estimation.estimation_result import Estimated

MAX_GROUPS = 20
"""Groups that are printed one by one; of more, the means by severity if they have one."""


def estimate_accuracy(
    _: Stage, made: Made, __: Workspace
) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """How good the estimators are if there are labels, and the estimates."""
    from stages.estimation.estimation_result import open_estimated

    found = open_estimated(made.output)
    card = found.card
    if card.left_out_rows:
        note(f"{card.left_out_rows:,} rows left out: they failed (see `status`)")
    facts = {
        "result": made.name,
        "location": made.output.storage.location,
        "title": card.title,
        "sources": {label: asdict(each) for label, each in card.sources.items()},
        "quality": found.quality.to_dict(orient="records"),
        "by_group": found.by_group.to_dict(orient="records"),
    }
    return "\n\n".join(_parts(found)), facts


def _parts(found: Estimated) -> Iterator[str]:
    card = found.card
    yield card.title
    if len(found.quality):
        yield f"how near the estimates are, over {counted(card.n_groups, 'group')}"
        yield table(_records(found.quality))
    else:
        yield "no row has a label: the estimates cannot be judged"
    yield from _estimates(found)
    sources = [
        f"{label}: accuracy {each.accuracy:.4f}, confidence {each.confidence:.4f}"
        for label, each in card.sources.items()
    ]
    yield f"on the source rows, {'; '.join(sources)}"
    yield files_and_page(found.artifact, ("by-group", "quality"))


def _estimates(found: Estimated) -> Iterator[str]:
    by_group, card = found.by_group.drop(columns=["seed", "n_labelled"]), found.card
    by = [*card.cells]
    is_many = card.n_groups > MAX_GROUPS
    if is_many:
        by = [name for name in by if name == "severity"]
    keys = ["predictor", *by]
    means = by_group.drop(columns=[n for n in card.cells if n not in by])
    what = "estimates" if not is_many else f"estimates, mean over groups{' by severity' * bool(by)}"
    yield what
    rows = means.groupby(keys, sort=False, dropna=False).mean().reset_index()
    yield table(_records(rows.drop(columns="n_rows")))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[Any] = frame.to_dict(orient="records")
    return rows
