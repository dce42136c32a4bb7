"""How many of the images that a page evaluates a head was fitted on."""

from __future__ import annotations

import numpy as np

from stages.reflection.feature_plan import FeaturePlan, SourceFacts
from stages.reflection.sample_hashes import SAMPLE, sample_hashes
from store.catalog import FeatureStore
from store.errors import StoreError


def share_seen(store: FeatureStore, evaluated: str, fitted: str) -> float:
    """Share of the images of one feature set that another one has too, from 0 to 1.

    Images are the same if their data set, split and ``sample_id`` are the same, however they were
    denoised, augmented or normalised. A corrupted copy is another image. Sets that were deleted
    since share nothing.
    """
    if evaluated == fitted:
        return 1.0
    try:
        here, there = store.resolve(evaluated), store.resolve(fitted)
        ours, theirs = (FeaturePlan.of(each.plan).source for each in (here, there))
        if ours.stored_fingerprint and ours.stored_fingerprint == theirs.stored_fingerprint:
            return 1.0
        if _data_set(ours) != _data_set(theirs):
            return 0.0
        if not all(SAMPLE in dict(each.schema.columns) for each in (here, there)):
            return 0.0
        return float(np.isin(sample_hashes(here), sample_hashes(there)).mean())
    except StoreError:
        return 0.0


def _data_set(source: SourceFacts) -> tuple[str, str | None]:
    name = source.name if source.alteration is None else source.alteration.of
    return name, source.split
