"""Recompute some rows of a stored set and compare them with what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

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

T = TypeVar("T")

N_ROWS = 16
"""Number of rows to recompute per set, spread over those that did not fail; with batch statistics
as many as whole groups allow, but at least one group."""

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
    tolerance = FP32_TOLERANCE if planned.precision == "fp32" else BF16_TOLERANCE
    for group in _groups_of(feature_set, card.batch_statistics):
        read = {row: source.read(row, row + 1) for row in group}
        unread = {row: each.failed[0] for row, each in read.items() if each.failed}
        yield from (f"row {row}: {reason}" for row, reason in unread.items())
        if len(unread) == len(group) or (unread and card.batch_statistics):
            continue  # the other images of a group with batch statistics depend on these
        rows = [row for row in group if row not in unread]
        images = np.concatenate([read[row].images for row in rows])
        with evaluating(network, card.image_size):
            pixels = pixels_of(card, torch.from_numpy(images), torch.device("cpu"))
            expected = own_answer(network, card.last_layer, pixels)
        if other := disagreement(_stored(feature_set, rows), expected, tolerance):
            yield f"the network gives different {other} in a sample of {len(rows)} rows"
            return


def _groups_of(feature_set: FeatureSet, group_rows: int | None) -> list[list[int]]:
    """A sample of rows that did not fail, from finished shards, to be computed together.

    With batch statistics, each list is one whole group without failed rows.
    """
    shard_set = feature_set.shard_set
    failed = {row for receipt in shard_set.receipts() for row in receipt.failed}
    done = shard_set.done()
    finished = [shard for shard in shard_set.shards if shard.index in done]
    if group_rows is None:
        good = [
            row for shard in finished for row in range(shard.start, shard.stop) if row not in failed
        ]
        return [_spread(good, N_ROWS)] if good else []
    starts = (start for each in finished for start in range(each.start, each.stop, group_rows))
    groups = (list(range(start, min(start + group_rows, feature_set.n_rows))) for start in starts)
    whole = [group for group in groups if failed.isdisjoint(group)]
    return _spread(whole, max(1, N_ROWS // group_rows))


def _spread(values: Sequence[T], n: int) -> list[T]:
    """Up to ``n`` of the values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(n, len(values))).astype(int)
    return [values[place] for place in places]


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
