"""Recompute some rows of a stored set and compare them with what is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from stages.data.source import ImageSource, check_planned
from stages.errors import InputError
from stages.reflection.feature_plan import FeaturePlan, planned_model
from stages.sensing.model import last_layers, load_network, pixels_of, sensing_of
from stages.sensing.probe import (
    BF16_TOLERANCE,
    Answer,
    disagreement,
    evaluating,
    own_answer,
    sample_images,
)
from store.featureset import FeatureSet

N_ROWS = 16
"""Number of rows to recompute per set, spread over those that did not fail."""

FP32_TOLERANCE = 1e-3
"""Largest relative difference that other hardware and other releases of torch can cause."""


def differences_now(feature_set: FeatureSet, source: ImageSource, weights: str) -> Iterator[str]:
    """What extraction would refuse or compute differently today; one line each.

    Rows are not compared if their images were perturbed by ODIN or PGD, or if the model was
    accepted with an unstable output. A row whose image can no longer be read is reported as such.

    Args:
        feature_set: a set, complete or not.
        source: its images.
        weights: path of its model's weights.

    Raises:
        InputError: the images or the weights are no longer those of the set, or its plan has an
            unknown format.
    """
    plan = feature_set.plan
    planned = FeaturePlan.of(plan)
    if planned.precision is None:
        raise InputError("its plan does not record how it was extracted")
    check_planned(source, plan["inputs"]["source"])
    card = planned_model(plan)
    network = load_network(card, weights)
    last_layers(network, card)
    try:
        sensing_of(network, card, sample_images(source), is_new=True)
    except InputError as error:
        yield f"a run today would refuse it: {error}"
    if planned.perturbations or card.accepts_unstable:
        return
    read = {row: source.read(row, row + 1) for row in _rows_of(feature_set)}
    yield from (f"row {row}: {each.failed[0]}" for row, each in read.items() if each.failed)
    rows = [row for row, each in read.items() if not each.failed]
    if not rows:
        return
    images = np.concatenate([read[row].images for row in rows])
    with evaluating(network, card.image_size):
        pixels = pixels_of(card, torch.from_numpy(images), torch.device("cpu"))
        expected = own_answer(network, card.last_layer, pixels)
    tolerance = FP32_TOLERANCE if planned.precision == "fp32" else BF16_TOLERANCE
    if other := disagreement(_stored(feature_set, rows), expected, tolerance):
        yield f"the network gives different {other} in a sample of {len(rows)} rows"


def _rows_of(feature_set: FeatureSet) -> list[int]:
    """A sample of rows that did not fail, from finished shards."""
    shard_set = feature_set.shard_set
    failed = {row for receipt in shard_set.receipts() for row in receipt.failed}
    done = shard_set.done()
    good = [
        row
        for shard in shard_set.shards
        if shard.index in done
        for row in range(shard.start, shard.stop)
        if row not in failed
    ]
    places = np.linspace(0, len(good) - 1, min(N_ROWS, len(good))).astype(int)
    return [good[place] for place in places]


def _stored(feature_set: FeatureSet, rows: list[int]) -> Answer:
    features, logits = (
        np.stack([_row_of(feature_set, name, row) for row in rows])
        for name in ("features", "logits")
    )
    return Answer(torch.from_numpy(features), torch.from_numpy(logits))


def _row_of(feature_set: FeatureSet, name: str, row: int) -> NDArray[np.float32]:
    """One row of an array; the set may be incomplete."""
    shard = feature_set.shard_set.shards[row // feature_set.shard_set.chunk_rows]
    values: NDArray[np.float32] = feature_set.read_chunk(name, shard)[row - shard.start]
    return values
