"""Results of the stage influence.

``influences.parquet`` has a row for each explained row, method, side and rank; ``methods.parquet``
one for each method; ``sheet.html`` and ``sheet-*.png`` show the first explained rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.stored_card import StoredCard

INFLUENCES, METHODS = "influences.parquet", "methods.parquet"
SIDES = ("supports", "opposes")

DEFINITIONS = {
    "exact": "by how much the loss of the explained class rises, to first order, if the training "
    "row is left out and the last layer is trained to its optimum again: g'ᵀ (H + λI)⁻¹ g with g "
    "the gradients and H the sum of the Hessians at the last layer (Koh and Liang 2017)",
    "kfac": "the same, with the Kronecker product of classes and features in place of H",
    "tracin": "sum over snapshots of rate times g'ᵀ g: by how much steps of gradient descent on "
    "the training row lowered the loss of the explained class (Pruthi et al. 2020)",
    "supports": "score above zero: without the training row, the explained class would be less "
    "probable",
    "opposes": "score below zero: without the training row, it would be more probable",
    "own class": "share of the listed rows that are labelled with the explained class",
    "overlap": "share of the listed rows that the first method lists on the same side",
}


@dataclass(frozen=True, slots=True)
class InfluenceCard(StoredCard):
    """The card of a result, in its order.

    Attributes:
        features, training: feature sets of the explained rows, and of the training rows.
        model: name of the network.
        explained: "prediction" or "label".
        rows: number of explained rows.
        training_rows: number of training rows that have a label and did not fail.
        listed: training rows that are listed on each side.
        damping: for each curvature λ, absolute.
        snapshots: feature sets of the training rows that TracIn sums over.
        class_names: names of the classes.
        definitions: word -> its definition.
        versions: library -> its version.
        seconds: how long it took.
    """

    title: str
    features: str
    training: str
    model: str
    explained: str
    rows: int
    training_rows: int
    listed: int
    damping: Mapping[str, float]
    snapshots: tuple[str, ...]
    class_names: tuple[str, ...]
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float
