"""The judges of the stage uncertainty: f, heads, Laplace approximations, MC dropout, ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from stages.errors import DataNotFoundError, InputError
from stages.introspection.contenders import Contender
from stages.introspection.head_card import FittedLaplace, head_card
from stages.introspection.laplace import read_posterior
from stages.introspection.predictors import sensing_probabilities
from stages.introspection.preparation import check_same_classes
from stages.judging.head_judges import head_judges
from stages.judging.judgement import Judge, Rows
from stages.metrics.definitions import REFERENCE
from stages.reflection.feature_plan import FeaturePlan
from stages.sensing.stored_layer import stored_layer
from stages.uncertainty.sampling import DropoutSampling, Ensemble, LaplaceSampling
from store.catalog import FeatureStore
from store.featureset import FeatureSet

Member = Callable[[Rows], NDArray[Any]]
"""Maps rows to probabilities ``[n, N]``."""

SEPARATOR = "+"


@dataclass(frozen=True)
class Sampling:
    """How predictions are sampled.

    Attributes:
        dropout: rates of MC dropout, each a judge.
        ensembles: label -> names of the members.
        n_samples: samples per row of Laplace approximations and of dropout.
        predictive: "probit" or "mc": how a Laplace approximation predicts.
        seed: seed of the samples.
    """

    dropout: tuple[float, ...]
    ensembles: Mapping[str, tuple[str, ...]]
    n_samples: int
    predictive: str
    seed: int

    @property
    def labels(self) -> list[str]:
        """Labels of the judges that are not heads."""
        return [*map(dropout_label, self.dropout), *self.ensembles]


def dropout_label(rate: float) -> str:
    """Label of MC dropout in tables.

    >>> dropout_label(0.1)
    'dropout 0.1'
    """
    return f"dropout {rate:g}"


def judges_of(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    sampling: Sampling,
) -> list[Judge]:
    """All judges, f first; f is an ensemble of one, so that every result has the information."""
    judges: list[Judge] = [Ensemble(REFERENCE, (_of_f,))]
    for each in contenders:
        judges += _judges_of_head(store, feature_set, each, sampling)
    if sampling.dropout:
        model = FeaturePlan.of(feature_set.plan).model
        layer = stored_layer(store, model.name, model.weights_sha256)
        judges += [
            DropoutSampling(dropout_label(rate), layer, rate, sampling.n_samples, sampling.seed)
            for rate in sampling.dropout
        ]
    members = _members_of(judges)
    for label, names in sampling.ensembles.items():
        of_names = [
            members.get(name) or [_other_network(store, feature_set, name)] for name in names
        ]
        judges.append(Ensemble(label, tuple(member for some in of_names for member in some)))
    return judges


def told_of(contenders: Sequence[Contender], sampling: Sampling) -> dict[str, str]:
    """What each judge that is not a plain head is, in one line by label."""
    told = {}
    for each in contenders:
        made = head_card(each.head).predictor
        if isinstance(made, FittedLaplace):
            how = "probit approximation" if sampling.predictive == "probit" else "mean over samples"
            told[each.label] = (
                f"{made.structure} Laplace approximation of f's last layer, prior precision "
                f"{made.prior:.4g}: {how}; mutual information from {sampling.n_samples} samples"
            )
    for rate in sampling.dropout:
        told[dropout_label(rate)] = (
            f"mean over {sampling.n_samples} samples with dropout of f's features at rate {rate:g}"
        )
    for label, names in sampling.ensembles.items():
        told[label] = f"mean of the probabilities of {', '.join(names)}, all seeds"
    return told


def networks_in(
    store: FeatureStore,
    feature_set: FeatureSet,
    contenders: Sequence[Contender],
    sampling: Sampling,
) -> list[FeatureSet]:
    """The feature sets of other networks that ensembles read, each once.

    Raises:
        InputError: an ensemble has one member, or a network does not fit.
        DataNotFoundError: a member is neither a label nor a network with features of these images.
    """
    labels = [
        REFERENCE,
        *(each.label for each in contenders),
        *map(dropout_label, sampling.dropout),
    ]
    n_seeds = {each.label: len(head_card(each.head).seeds) for each in contenders}
    names: dict[str, FeatureSet] = {}
    for label, members in sampling.ensembles.items():
        if sum(n_seeds.get(name, 1) for name in members) < 2:
            raise InputError(
                f"ensemble '{label}': expected two or more members, found {members[0]}: join them "
                f"with {SEPARATOR}, as f{SEPARATOR}H"
            )
        for name in members:
            if name not in labels and name not in names:
                names[name] = features_of(store, feature_set, name)
    return list(names.values())


def features_of(store: FeatureStore, feature_set: FeatureSet, model: str) -> FeatureSet:
    """The features of the same images under another network of the store.

    Raises:
        InputError: there are several, or the network has other classes.
        DataNotFoundError: there are none.
    """
    ours = FeaturePlan.of(feature_set.plan)
    found = [
        each
        for each in store.feature_sets()
        if (theirs := FeaturePlan.of(each.plan)).model.name == model
        and theirs.source.fingerprint == ours.source.fingerprint
        and theirs.perturbations == ours.perturbations
        and theirs.model.batch_statistics == ours.model.batch_statistics
        and each.n_rows == feature_set.n_rows
    ]
    if not found:
        raise DataNotFoundError(
            f"ensemble: '{model}' is no label of this comparison and no model with features of the "
            f"images of {feature_set.name}: extract them with `intro-pipe extract --model {model}`"
        )
    if len(found) > 1:
        raise InputError(
            f"ensemble: {len(found)} feature sets of these images are of model '{model}': "
            f"{', '.join(each.name for each in found)}; expected one"
        )
    check_same_classes(feature_set, found[0], "ensemble")
    return found[0].require_complete()


def _judges_of_head(
    store: FeatureStore, feature_set: FeatureSet, each: Contender, sampling: Sampling
) -> list[Judge]:
    made = head_card(each.head).predictor
    if isinstance(made, FittedLaplace):
        posterior = read_posterior(each.head, made.structure, has_bias=made.has_bias)
        is_probit = sampling.predictive == "probit"
        return [
            LaplaceSampling(each.label, posterior, sampling.n_samples, sampling.seed, is_probit)
        ]
    return head_judges(store, feature_set, each)


def _of_f(rows: Rows) -> NDArray[Any]:
    return sensing_probabilities(rows.features, rows.logits)


def _members_of(judges: Sequence[Judge]) -> dict[str, list[Member]]:
    """Label -> the predictions of all seeds."""
    members: dict[str, list[Member]] = {}
    for each in judges:
        members.setdefault(each.label, []).append(_probabilities_of(each))
    return members


def _probabilities_of(judge: Judge) -> Member:
    return lambda rows: judge.answer(rows).probabilities


def _other_network(store: FeatureStore, feature_set: FeatureSet, model: str) -> Member:
    other = features_of(store, feature_set, model)

    def predict(rows: Rows) -> NDArray[Any]:
        features, logits = (
            other.read(name, rows.shard.start, rows.shard.stop) for name in ("features", "logits")
        )
        return sensing_probabilities(features, logits)

    return predict
