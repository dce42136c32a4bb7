"""The printed summary of influences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.output import table
from pipeline.stage import Made, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace


def influence(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """What the strongest training rows have in common, and where the sheet is."""
    from stages.influence.influence_result import INFLUENCES, METHODS, InfluenceCard
    from stages.out_folder import PAGE

    card, folder = InfluenceCard.of(made.output), made.output.storage.location
    methods = made.output.read_frame(METHODS).to_dict(orient="records")
    page = f"{folder}/{PAGE}" if PAGE in made.output.files() else None
    lines = [
        f"{card.title}: the {card.explained} of {counted(card.rows, 'row')}, "
        f"{counted(card.training_rows, 'training row')} searched in {card.seconds:.1f} s"
    ]
    shown = [
        {
            "method": row["method"],
            "side": row["side"],
            "listed": f"{row['n_listed']:,}",
            "own class": f"{row['own_class']:.1%}",
            "overlap": f"{row['overlap']:.1%}",
            "mean score": f"{row['mean_score']:+.3g}",
        }
        for row in methods
    ]
    lines += [table(shown)] if shown else ["no training row has a score other than 0"]
    lines += [f"page: {page}"] if page else []
    lines += [f"copied to {made.copied[0].parent}"] if made.copied else []
    facts = {
        "result": made.name,
        "page": page,
        "copied": [str(path) for path in made.copied],
        "methods": methods,
        "influences": made.output.read_frame(INFLUENCES).to_dict(orient="records"),
        "damping": dict(card.damping),
        "definitions": dict(card.definitions),
    }
    return "\n".join(lines), facts
