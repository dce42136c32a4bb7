"""The printed summary of a pruned training set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.output import table
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace


def prune(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """The accuracy for each score and share, and its gain over random subsets."""
    from stages.pruning.pruned import MEANS, PruningCard

    card, means = PruningCard.of(made.output), made.output.read_frame(MEANS)
    rows = means.to_dict(orient="records")
    shown = [
        {
            "score": row["score"],
            "keep": f"{row['keep']:g}",
            "rows": f"{row['n_rows']:,}",
            "accuracy": f"{row['accuracy']:.4f}",
            "gain": "" if row["gain"] != row["gain"] else f"{row['gain']:+.4f}",
        }
        for row in rows
    ]
    lines = [
        f"{card.title}: the {card.order} of {counted(card.rows, 'row')} kept, "
        f"{counted(len(card.seeds), 'seed')}, tested on {counted(card.tested, 'row')}",
        table(shown),
        f"f itself: {card.test_accuracy:.4f}",
    ]
    lines += [f"kept rows: {made.copied[0].parent}"] if made.copied else []
    facts = {
        "result": made.name,
        "test_accuracy": card.test_accuracy,
        "means": rows,
        "definitions": dict(card.definitions),
        "copied": [str(path) for path in made.copied],
    }
    return "\n".join(lines), facts
