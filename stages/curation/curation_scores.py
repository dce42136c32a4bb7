"""The scores of a curation by name: what each is, and which of its ends comes first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranking:
    """A score by which rows are ranked; ``needs_labels`` unless it is defined for all rows."""

    definition: str
    is_lowest_first: bool = True
    needs_labels: bool = True


RANKINGS: dict[str, Ranking] = {
    "self_confidence": Ranking("out-of-sample probability of the label; lowest first"),
    "normalized_margin": Ranking(
        "out-of-sample probability of the label, less that of the likeliest other class, scaled "
        "to [0, 1]; lowest first"
    ),
    "confidence_weighted_entropy": Ranking(
        "log(1 + x) / x with x the normalised entropy over the self-confidence (Kuan and Mueller "
        "2022); lowest first"
    ),
    "margin": Ranking(
        "probability that f gives to the likeliest other class, less that of the label; highest "
        "first",
        is_lowest_first=False,
    ),
    "el2n": Ranking(
        "length of δ = p - onehot(label), the error of f's probabilities (Paul et al. 2021); "
        "highest first",
        is_lowest_first=False,
    ),
    "grand": Ranking(
        "length of the cross entropy's gradient at the last layer, that of δ times that of [f, 1] "
        "(GraNd, Paul et al. 2021); highest first",
        is_lowest_first=False,
    ),
    "similarity": Ranking(
        "cosine to the nearest row; highest first", is_lowest_first=False, needs_labels=False
    ),
}
