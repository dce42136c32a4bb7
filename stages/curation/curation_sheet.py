"""The contact sheet of a curation: the first ranked rows, and the nearest row of each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.curation.curation_scores import RANKINGS
from stages.data.picked import images_of
from stages.data.registry import SourceSpec
from stages.sheets.overlays import Pixels
from stages.sheets.sheet import Row, Sheet, Tile

Facts = Mapping[Hashable, Any]  # Any: the values of a row

SPACES = {"features": "f", "reflection": "r_x"}
NOTES = (
    "A flag says that confident learning counts the label as a likely error. Neither a flag nor a "
    "low score proves that a label is wrong: look at the image.",
)


@dataclass(frozen=True)
class Images:
    """Where the images of the rows are.

    Attributes:
        rows: images of the feature set.
        nearest: images of the set that was searched for neighbours; None if none was.
        space: the space of the cosines.
    """

    rows: SourceSpec
    nearest: SourceSpec | None
    space: str


def curation_sheet(
    top: pd.DataFrame, images: Images, names: Sequence[str], by: str, title: str, command: str
) -> Sheet:
    """The sheet of some ranked rows.

    Args:
        top: rows of the ranking, in order.
        images: where their images are.
        names: names of the classes.
        by: score of the ranking.
        title: title of the page.
        command: command that makes it again.
    """
    image_of = images_of(images.rows.open(), top["row"].to_numpy())
    nearest_of = None
    if images.nearest is not None:
        near = top["nearest_row"].to_numpy()
        nearest_of = images_of(images.nearest.open(), near[near >= 0])
    drawn = []
    for rank, facts in enumerate(top.to_dict(orient="records"), start=1):
        tiles = [Tile("Image", image_of(facts["row"]), f"The image {facts['sample_id']}.")]
        if nearest_of is not None and facts["nearest_row"] >= 0:
            tiles.append(_nearest(facts, nearest_of(facts["nearest_row"]), names, images.space))
        drawn.append(Row(f"{rank}. {facts['sample_id']}", _lines(facts, names, by), tiles))
    about = f"The first {len(drawn):,} rows by {by}: {RANKINGS[by].definition}."
    return Sheet(title, about, drawn, NOTES if "self_confidence" in top else (), command=command)


def _nearest(facts: Facts, image: Pixels, names: Sequence[str], space: str) -> Tile:
    label = _name(names, facts["nearest_label"])
    caption = f"{label}, cosine {facts['similarity']:.4f}"
    heading = f"Nearest in {SPACES[space]}"
    return Tile(heading, image, f"{heading}: {facts['nearest_sample_id']}, {caption}.", caption)


def _lines(facts: Facts, names: Sequence[str], by: str) -> list[str]:
    """The label, what the out-of-sample probabilities suggest, and the score."""
    lines = [f"label: {_name(names, facts['label'])}"]
    if facts.get("suggested", -1) >= 0:
        share = facts["suggested_probability"]
        lines.append(f"suggested: {_name(names, facts['suggested'])} {share:.3f}")
    lines.append(f"{by}: {facts[by]:.4g}")
    if facts.get("is_label_issue"):
        lines.append("flagged as a label error")
    return lines


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else "no label"
