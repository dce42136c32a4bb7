"""A second feature set of the same samples, whose predictors are compared with those of the first.

It may be another extraction by the same network, or one by another network with the same classes.
Its rows may have another order and shards of another size: samples are matched by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError
from stages.introspection.contenders import Contender, check_labels
from stages.introspection.preparation import check_same_classes
from stages.judging.judged_sets import check_judged
from stages.metrics.definitions import REFERENCE
from stages.reflection.sample_hashes import SAMPLE, sample_hashes
from store.catalog import FeatureStore
from store.featureset import FeatureSet


@dataclass(frozen=True, slots=True)
class Beside:
    """A second feature set: the label of f on it, and the heads that read it."""

    feature_set: FeatureSet
    label: str
    contenders: Sequence[Contender]

    @property
    def labels(self) -> list[str]:
        """The labels of its predictors, f first."""
        return [self.label, *(each.label for each in self.contenders)]


def check_beside(
    store: FeatureStore, feature_set: FeatureSet, contenders: Sequence[Contender], beside: Beside
) -> None:
    """Raise ``InputError`` if labels clash, the heads do not fit, or classes differ."""
    labels = [REFERENCE, *(each.label for each in contenders), *beside.labels]
    check_labels(labels)
    check_same_classes(feature_set, beside.feature_set, "--beside")
    check_judged(store, beside.feature_set, beside.contenders, "evaluate", reads_further=True)


def name_beside(feature_set: FeatureSet, other: FeatureSet) -> str:
    """The short name of the other set; its full name if the first set has the same short one."""
    short = str(other.plan["name"])
    return other.name if short == feature_set.plan["name"] else short


def matched_rows(
    feature_set: FeatureSet, other: FeatureSet, cells: Sequence[str]
) -> NDArray[np.int64]:
    """For each row of the other set, the row of the same sample in the first set.

    Samples are the same if they have the same name, label, and values in the columns ``cells``.
    Reads no other columns. Takes 8 bytes per row, and 48 while it runs.

    Raises:
        InputError: the sets do not have the same samples, or lack one of the columns.
    """
    columns = tuple(dict.fromkeys((SAMPLE, "label", *cells)))
    ours, theirs = (_hashes(each, columns) for each in (feature_set, other))
    at, at_theirs = (np.argsort(each, kind="stable") for each in (ours, theirs))
    if not np.array_equal(ours[at], theirs[at_theirs]):
        unknown = np.flatnonzero(np.isin(theirs, ours, invert=True))
        first = f", such as {_name(other, unknown[0])!r}" if len(unknown) else ""
        raise InputError(
            f"--beside {other.name}: expected the {len(ours):,} samples of {feature_set.name}, by "
            f"{', '.join(columns)}; found {len(theirs):,} rows, {len(unknown):,} of them other "
            f"samples{first}: extract the same images for both"
        )
    rows = np.empty_like(at)
    rows[at_theirs] = at
    return rows


def _hashes(feature_set: FeatureSet, columns: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of each sample; raises ``InputError`` if the set lacks one of the columns."""
    known = [name for name, _ in feature_set.schema.columns]
    if missing := [name for name in columns if name not in known]:
        raise InputError(
            f"--beside: {feature_set.name} has no column '{missing[0]}', by which samples of two "
            f"feature sets are matched; it has {', '.join(known)}"
        )
    return sample_hashes(feature_set, columns)


def _name(feature_set: FeatureSet, row: int) -> str:
    """The name of the sample of a row."""
    shard = next(each for each in feature_set.shard_set.shards if row < each.stop)
    samples = feature_set.read_samples(shard, [SAMPLE])
    return str(samples[SAMPLE][int(row) - shard.start].as_py())
