"""Predictors whose rows are scored, f and the seeds of heads: their factors, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from torch import nn

from pipeline.fields import Labelled
from stages.errors import InputError
from stages.introspection.contenders import Contender, check_contenders, contenders_of
from stages.introspection.head_card import FittedLaplace, FittedTemperature, head_card
from stages.introspection.predictors import LastLayer, divided, factors, open_head
from stages.introspection.preparation import check_preparation
from stages.metrics.definitions import REFERENCE
from stages.metrics.finite import finite_rows
from stages.reflection.feature_plan import planned_model
from stages.reflection.reduction import each_shard
from stages.scores.factors import Block, Linear, Rows, TrainingRows, as_it_is
from stages.scores.known_scores import OF_WEIGHTS
from stages.sensing.logit_layers import linear_map, logit_layers
from stages.sensing.model import load_network
from stages.sensing.models import require_trusted_code, weights_path
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard

KEPT_BYTES = 2**27
"""Size of a predictor's factors of training rows that are kept; larger ones are recomputed."""


@dataclass(frozen=True)
class Predictor:
    """f, or one seed of a head.

    Attributes:
        label: its name in tables.
        seed: 0 for f.
        last_layer: maps f's features and logits to input and output of its last layer.
        load_linear: loads the weights of that layer.
    """

    label: str
    seed: int
    last_layer: LastLayer
    load_linear: Callable[[], Linear]

    def keeps_features(self, features: Rows, logits: Rows) -> bool:
        """Whether the last layer reads the features of f, as that of a temperature does."""
        return self.last_layer(features, logits)[0] is features

    def factors(self, features: Rows, logits: Rows) -> tuple[Rows, Rows]:
        """Input and output of the last layer.

        Raises:
            InputError: they are not finite for a row of f that is; f and head would be scored on
                different rows.
        """
        found = self.last_layer(features, logits)
        usable = finite_rows(features, logits)
        if n_bad := int((usable & ~finite_rows(*found)).sum()):
            raise InputError(
                f"the output of head '{self.label}' is not finite for {n_bad:,} of "
                f"{usable.sum():,} rows with finite features: leave it out of --head (--head none "
                "compares f alone)"
            )
        return found


def sensing_predictor(store: FeatureStore, feature_set: FeatureSet) -> Predictor:
    """f, of the network of a feature set."""
    return Predictor(REFERENCE, 0, as_it_is, cache(partial(sensing_linear, store, feature_set)))


def head_predictors(
    store: FeatureStore, feature_set: FeatureSet, contenders: Iterable[Contender]
) -> list[Predictor]:
    """Every seed of heads. Raises ``InputError`` for a head without a last layer."""
    return [
        Predictor(
            each.label, seed, last, cache(partial(head_linear, store, feature_set, each.head, seed))
        )
        for each in contenders
        for seed, last in factors(each.head).items()
    ]


def first_predictors(
    store: FeatureStore, feature_set: FeatureSet, heads: Sequence[Labelled]
) -> list[Predictor]:
    """f, and each head with the first of its seeds.

    Raises:
        InputError: a head belongs to another network or was trained on images that were prepared
            differently, labels clash, or a head has no last layer.
        NotFoundError: a head does not exist.
    """
    contenders = contenders_of(store, feature_set, heads)
    check_contenders(contenders)
    for each in contenders:
        check_preparation(store, feature_set, each.head)
    seeds = reversed(head_predictors(store, feature_set, contenders))
    firsts = {each.label: each for each in seeds}
    found = [firsts[each.label] for each in contenders]
    return [sensing_predictor(store, feature_set), *found]


def sensing_linear(store: FeatureStore, feature_set: FeatureSet) -> Linear:
    """The last layer of the network of a feature set.

    Raises:
        DataNotFoundError, InputError: the model is not in the store, is not the same, or is code
            that is not trusted.
    """
    card = planned_model(feature_set.plan)
    require_trusted_code(card)
    network = load_network(card, weights_path(store, card.name))  # checks that it is the same
    weight, bias = linear_map(logit_layers(network, card.last_layer))
    return Linear(weight.double().numpy(), bias.double().numpy())


def head_linear(store: FeatureStore, feature_set: FeatureSet, head: Artifact, seed: int) -> Linear:
    """The last layer of a head; of a temperature, f's, divided by it.

    Raises ``InputError`` as `check_scores`, and as `sensing_linear` for a temperature.
    """
    predictor = head_card(head).predictor
    if isinstance(predictor, FittedTemperature):
        weight, bias = sensing_linear(store, feature_set)
        return Linear(weight / predictor.temperature, bias / predictor.temperature)
    check_scores(head, OF_WEIGHTS)
    last = open_head(head, seed).linears[-1]
    assert isinstance(last, nn.Linear)  # by the definition of Head
    own, constant = linear_map([last])
    return Linear(own.double().numpy(), constant.double().numpy())


def check_scores(head: Artifact, names: Iterable[str]) -> None:
    """Raise ``InputError`` for a head without the logits or weights that scores read."""
    factors(head)
    reads_weights = not set(OF_WEIGHTS).isdisjoint(names)
    if reads_weights and isinstance(head_card(head).predictor, FittedLaplace):
        raise InputError(
            f"head '{head.name}' is a Laplace approximation, whose logits are no linear map of "
            f"features, which {', '.join(OF_WEIGHTS)} read: omit the head, or these scores"
        )


def divided_by(value: float, predictor: Predictor) -> Predictor:
    """f with its logits divided by a temperature, for scores that need no last layer."""
    return Predictor(
        predictor.label, predictor.seed, partial(divided, value), predictor.load_linear
    )


def training_rows(
    predictor: Predictor, feature_set: FeatureSet, tick: Callable[[int], None] = lambda _: None
) -> TrainingRows:
    """The rows of a training set as a predictor sees them, read shard by shard in each pass.

    They are kept after the first pass if they are few; see `KEPT_BYTES`.
    """
    kept: list[Block] = []

    def block_of(shard: Shard) -> Block:
        f, z = (feature_set.read_chunk(name, shard) for name in ("features", "logits"))
        labels = feature_set.read_samples(shard, ["label"])["label"].to_numpy().astype(np.int64)
        usable = finite_rows(f, z)
        return Block(*predictor.factors(f[usable], z[usable]), labels[usable])

    def read() -> Iterable[Block]:
        if kept:
            return kept
        return _kept(kept, each_shard(feature_set, block_of, tick), feature_set.n_rows)

    return TrainingRows(read, predictor.load_linear, feature_set.n_rows)


def _kept(kept: list[Block], blocks: Iterable[Block], n_rows: int) -> Iterable[Block]:
    """The blocks, which are appended to a list at the end of the pass if they are small."""
    seen: list[Block] = []
    for block in blocks:
        width = block.features.shape[1] + block.logits.shape[1]
        if 4 * n_rows * width <= KEPT_BYTES:
            seen.append(block)
        yield block
    kept.extend(seen)
