"""The printed summary of a curation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.comparison import page_of
from cli.output import note, table
from pipeline.stage import Made, Stage
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from stages.curation.curation_result import CurationCard, FoundFlips

N_ROWS, N_PAIRS = 10, 5
"""Number of rows and of pairs of classes that are printed."""


def curate(_: Stage, made: Made, __: Workspace) -> tuple[str, Mapping[str, Any]]:  # Any: JSON
    """The first rows, the classes that are confused most, and where the files are."""
    from stages.curation.curation_result import JOINT, RANKED, CurationCard, suspected_pairs, top_of
    from stages.curation.ranked_rows import top_rows
    from stages.out_folder import PAGE

    result, card = made.output, CurationCard.of(made.output)
    pairs = _pairs(suspected_pairs(result.read_frame(JOINT), N_PAIRS), card)
    top, place = top_of(result), result.storage.location
    first = top_rows(result.read_frame(RANKED), card.asked.by, N_ROWS, is_same_set=card.is_same_set)
    share = card.issues / card.labelled if card.labelled else 0.0
    if card.split == "train":
        note(
            "f was trained on these images: its features have seen the labels, so fewer errors "
            "stand out than in new images"
        )
    lines = [
        f"{card.title}: {card.issues:,} of {card.labelled:,} labelled rows are flagged as label "
        f"errors ({share:.2%})",
        f"first by {card.asked.by}: {card.definitions[card.asked.by]}",
        table(_first(first, card.asked.by)),
        *([_of_flips(card.found, card.asked.flips)] if card.found else []),
        *(["expected label errors by label and suggestion", table(pairs)] if pairs else []),
        f"tables: {place}/{{ranked,classes,joint}}.parquet",
        *([f"sheet: {place}/{PAGE}"] if PAGE in result.files() else []),
        page_of(made.name),
        *([f"copied to {made.copied[0].parent}"] if made.copied else []),
    ]
    return "\n".join(lines), {
        "result": made.name,
        "location": place,
        "labelled": card.labelled,
        "issues": card.issues,
        **({"found": asdict(card.found)} if card.found else {}),
        "definitions": card.definitions,
        "pairs": pairs,
        "top": top.to_dict(orient="records"),
        "copied": [str(path) for path in made.copied],
    }


def _of_flips(found: FoundFlips, flips: str | None) -> str:
    """The flipped labels that were found, in two lines."""
    shares = {"precision": found.precision, "recall": found.recall, "F1": found.f1}
    areas = {f"{name.replace('_', ' ')}": area for name, area in found.auroc.items()}
    said, ranked = (
        ", ".join(f"{name} {'-' if x is None else f'{x:.4f}'}" for name, x in each.items())
        for each in (shares, areas)
    )
    return (
        f"{found.flipped:,} labels were flipped ({flips}): {said} of the flags\n"
        f"AUROC of the flipped rows by score: {ranked}"
    )


def _first(first: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    lines = []
    for row in first.to_dict(orient="records"):
        facts = {"sample": row["sample_id"], "label": row["label_name"]}
        if by == "similarity":
            facts["nearest"] = row["nearest_sample_id"]
        else:
            flag = "yes" if row["is_label_issue"] else ""
            facts |= {"suggested": row["suggested_name"], "flagged": flag}
        lines.append({**facts, by: f"{row[by]:.4g}"})
    return lines


def _pairs(pairs: pd.DataFrame, card: CurationCard) -> list[dict[str, Any]]:
    names = card.class_names
    return [
        {"label": names[label], "suggested": names[other], "n_expected": n}
        for label, other, n in pairs[["label", "class", "n_expected"]].to_numpy().tolist()
    ]
