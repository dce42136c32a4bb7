"""The summary of active-learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import frame_table, note

if TYPE_CHECKING:
    from pipeline.stage import Made
    from pipeline.workspace import Workspace
    from stages.active_learning.active_learn import ActiveLearn
    from stages.active_learning.asking import Asking


def active_learn(
    stage: ActiveLearn, made: Made, workspace: Workspace
) -> tuple[str, dict[str, Any]]:  # Any: JSON
    """The accuracies of the runs, or where the list of images to label is."""
    return _curves(made) if stage.ask is None else _question(stage.asking(workspace), made)


def _question(asking: Asking, made: Made) -> tuple[str, dict[str, Any]]:
    from stages.active_learning.asking import SHEET
    from stages.data.source_notes import left_out_of

    card, (path, *_) = made.output.card(), made.copied
    sheet = Path(path).parent / SHEET
    text = (
        f"{made.name}: {asking.n:,} images to label, chosen by {card['strategy']} after "
        f"{len(asking.labels):,} labels{_counted(asking)}\nwrite the labels into {path} with the "
        f"help of {sheet}; to select the next images, add --labels {path} and another --out to "
        "this command"
    )
    if card.get("n_failed"):
        text += f"\nnot selected, because they cannot be read: {card['n_failed']:,}"
    if card.get("n_not_finite"):
        note(
            f"{card['n_not_finite']:,} images were not selected: the network's logits for them are "
            "not finite"
        )
    facts = {name: card[name] for name in ("strategy", "asked", "scores", "classes")}
    left_out = left_out_of(asking.source)
    return text, {"result": made.name, "list": str(path), **facts, **left_out}


def _counted(asking: Asking) -> str:
    """Number of labels of each class, which shows a mistyped one."""
    counts = sorted(Counter(asking.labels.values()).items())
    return f" ({', '.join(f'{name} {n:,}' for name, n in counts)})" if counts else ""


def _curves(made: Made) -> tuple[str, dict[str, Any]]:
    from stages.active_learning.active_runs import CurvesCard, means_of, read_curves

    card, curves = CurvesCard.of(made.output), read_curves(made.output)
    for name, n in card.left_out.items():
        note(f"{n:,} images of {name} left out: the network's logits for them are not finite")
    last = curves[curves["round"] == curves["round"].max()]
    means = means_of(curves).assign(last=means_of(last)["mean"])
    text = (
        f"{made.name}: accuracy, mean over {card.rounds.rounds} rounds, and in the last one with "
        f"{card.rounds.n_labelled:,} labels\n{frame_table(means)}"
    )
    return text, {
        "result": made.name,
        "location": made.output.storage.location,
        "means": means.to_dict(orient="records"),
        "curves": means_of(curves, ["labelled"]).to_dict(orient="records"),
    }
