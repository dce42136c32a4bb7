"""How many of the images that a page evaluates a head was fitted on."""

from __future__ import annotations

from stages.reflection.feature_plan import FeaturePlan, SourceFacts
from store.catalog import FeatureStore
from store.errors import StoreError
from store.featureset import FeatureSet

SAMPLE_ID = "sample_id"


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
        ids, known = _sample_ids(here), _sample_ids(there)
    except StoreError:
        return 0.0
    return len(ids & known) / len(ids) if ids else 0.0


def _data_set(source: SourceFacts) -> tuple[str, str | None]:
    name = source.name if source.alteration is None else source.alteration.of
    return name, source.split


def _sample_ids(found: FeatureSet) -> set[str]:
    """The names of all images of a set; empty if its samples have none."""
    if SAMPLE_ID not in dict(found.schema.columns):
        return set()
    tables = (found.read_samples(shard, [SAMPLE_ID]) for shard in found.shard_set.shards)
    return {name for table in tables for name in table[SAMPLE_ID].to_pylist()}
