"""Accuracy on the clean images beside the mean over their corruptions, from the same store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from pipeline.stage import stage_name
from stages.errors import InputError
from stages.introspection.comparison_card import ComparisonCard
from stages.reflection.feature_plan import FeaturePlan
from stages.report.results import Entry, Judged
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import StoreError
from store.featureset import FeatureSet
from store.plan import fingerprint

CORRUPTION = "corruption"


@dataclass(frozen=True, slots=True)
class Clean:
    """Where the accuracy on the clean images of a result comes from; empty for none.

    Attributes:
        features: feature set of the clean images.
        result: evaluation of that set; without one, only the accuracy of f is known.
        plan: hash of the plan of the evaluation.
    """

    features: str = ""
    result: str = ""
    plan: str = ""

    def __bool__(self) -> bool:
        """Whether there are clean images."""
        return bool(self.features)


def clean_of(store: FeatureStore, entry: Entry) -> Clean:
    """The clean counterpart of a result over corruptions, made by the same weights.

    It has the same family of data sets, split and precision, and no perturbation. Among several
    evaluations of such sets without cells, the one with the most of the contenders is used, then
    the first in the order of the names.
    """
    if stage_name(entry.result.plan()) != "evaluate":
        return Clean()
    card = ComparisonCard.of(entry.result)
    if CORRUPTION not in card.cells.columns:
        return Clean()
    try:
        corrupted = store.resolve(card.features)
    except StoreError:  # the features may have been deleted since
        return Clean()
    names = [found.name for found in _clean_sets(store, corrupted)]
    evaluated = [each for each in _evaluations(store) if each[0] in names]
    if not evaluated:
        return Clean(names[0]) if names else Clean()
    ours = set(_contenders(store, card).values())
    name, result = max(evaluated, key=lambda each: len(ours & _identities(store, each[1])))
    return Clean(name, result.name, fingerprint(result.plan()))


def clean_accuracies(store: FeatureStore, clean: Clean, found: Judged) -> dict[str, float]:
    """Contender -> accuracy on the clean images; contenders that were not evaluated are missing."""
    if clean.result:
        return _evaluated(store, store.artifact("result", clean.result), found)
    if clean.features:
        from stages.evaluation.recognition import query

        return {"f": query(store.open(clean.features)).rows[0]["accuracy"]}
    return {}


def with_clean(
    numbers: pd.DataFrame, accuracies: Sequence[dict[str, float]], axes: tuple[str, ...]
) -> pd.DataFrame:
    """The table with a column ``clean``: the accuracy on clean images, NaN where it is unknown.

    ``accuracies`` has one entry for each combination of the axes, in the order of the table.
    """
    entry = numbers.groupby(list(axes), sort=False).ngroup() if axes else [0] * len(numbers)
    rows = zip(entry, numbers["contender"], numbers["metric"], strict=True)
    values = [
        accuracies[at].get(contender, math.nan) if metric == "accuracy" else math.nan
        for at, contender, metric in rows
    ]
    return numbers.assign(clean=values)


def _clean_sets(store: FeatureStore, corrupted: FeatureSet) -> Iterator[FeatureSet]:
    theirs = _conditions(corrupted)
    if not theirs[0]:
        return
    for found in store.feature_sets():
        is_clean = CORRUPTION not in dict(found.schema.columns)
        try:
            if is_clean and found.shard_set.is_complete() and _conditions(found) == theirs:
                yield found
        except InputError:  # a plan in another format
            continue


def _conditions(found: FeatureSet) -> tuple[object, ...]:
    """What two feature sets must share: family, split, network, and all that is done to images."""
    plan = FeaturePlan.of(found.plan)
    source, model = plan.source, plan.model
    altered = source.alteration and (source.alteration.denoising, source.alteration.augmentation)
    network = (model.weights_sha256, model.mean, model.std, model.batch_statistics)
    return source.family, source.split, network, altered, plan.precision, plan.perturbations


def _evaluations(store: FeatureStore) -> Iterator[tuple[str, Artifact]]:
    """Features and result of each finished evaluation whose rows are one group."""
    for result in store.artifacts("result"):
        if not result.is_complete() or stage_name(result.plan()) != "evaluate":
            continue
        try:
            card = ComparisonCard.of(result)
        except (InputError, StoreError):
            continue
        if not card.cells.columns:
            yield card.features, result


def _evaluated(store: FeatureStore, result: Artifact, found: Judged) -> dict[str, float]:
    """The accuracies of an evaluation, by the labels that its contenders have here."""
    average, card = result.read_frame("average.parquet"), ComparisonCard.of(result)
    rows = average[average["metric"] == "accuracy"]
    of_label = dict(zip(rows["predictor"], rows["mean"], strict=True))
    names = {who: label for label, who in _contenders(store, card).items()}
    labels = {label: names.get(who) for label, who in _contenders(store, found.card).items()}
    accuracies = {"f": of_label["f"]}
    accuracies |= {label: of_label[their] for label, their in labels.items() if their}
    return {label: float(value) for label, value in accuracies.items()}


def _identities(store: FeatureStore, result: Artifact) -> set[tuple[object, ...]]:
    return set(_contenders(store, ComparisonCard.of(result)).values())


def _contenders(store: FeatureStore, card: ComparisonCard) -> dict[str, tuple[object, ...]]:
    """Label -> what identifies a contender, on clean as on corrupted images: head and conditions.

    The conditions are those of a second feature set, as text; contenders on one that was deleted
    are left out.
    """
    conditions = ""
    if card.beside is not None:
        with suppress(StoreError):
            conditions = repr(_conditions(store.resolve(card.beside.features)))
    heads = {label: card.contenders.get(label) for label in card.others}
    return {
        label: (card.is_beside(label) and conditions, head and (head.name, head.predictor))
        for label, head in heads.items()
        if conditions or not card.is_beside(label)
    }
