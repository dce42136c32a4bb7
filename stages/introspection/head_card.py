"""The card of a head: what it predicts from, how it was made, and from which features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat

from stages.errors import InputError
from stages.introspection.head_params import HeadParams
from stages.introspection.head_parts import FurtherArrays
from stages.introspection.head_spec import HeadSpec
from stages.introspection.reading import Reading
from stages.reflection.feature_plan import FeaturePlan
from stages.typed import known, typed
from store.artifacts import Artifact
from store.featureset import FeatureSet


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network for each seed.

    Attributes:
        rows: "all", or "held-out" rows of the training set.
        train_accuracy: accuracy of each seed on its training rows.
        selected_on: feature set on which the best epoch was chosen; empty for the last epoch.
        best_epoch: that epoch for each seed, counted from 1.
        tempered_on: feature set on which temperatures were fitted; empty if there are none.
        temperatures: the temperature of each seed, by which the last layer is divided.
        nll_before, nll_after: mean negative log-likelihood of each seed on that feature set, before
            and after the division.
    """

    spec: HeadSpec
    params: HeadParams
    rows: str = "all"
    train_accuracy: tuple[float, ...] = ()
    selected_on: str = ""
    best_epoch: tuple[int, ...] = ()
    tempered_on: str = ""
    temperatures: tuple[float, ...] = ()
    nll_before: tuple[float, ...] = ()
    nll_after: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """A number that divides the logits of f; ``split`` is that of the features it is fitted to."""

    temperature: Annotated[FiniteFloat, Field(gt=0)]
    nll_before: float = math.nan
    nll_after: float = math.nan
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Votes:
    """The ``k`` nearest rows of a training set vote.

    Attributes:
        reading: the vectors that are compared.
        temperature: if given, nearness is the cosine, and a vote weighs
            ``exp(cosine / temperature)``; otherwise nearness is Euclidean, and votes are equal.
    """

    k: int
    reading: Reading
    temperature: Annotated[FiniteFloat, Field(gt=0)] | None = None


@dataclass(frozen=True, slots=True)
class FittedLaplace:
    """A Gaussian over the weights of f's last layer.

    Attributes:
        structure: "full" or "kfac".
        prior: precision of the prior.
        prior_from: "given", "evidence" or "validation".
        has_bias: whether the layer has a bias.
        evidence: log marginal likelihood of the training rows; NaN if it was not computed.
    """

    structure: str
    prior: Annotated[FiniteFloat, Field(gt=0)]
    prior_from: str = "given"
    has_bias: bool = True
    evidence: float = math.nan


Predictor = TrainedNetwork | FittedTemperature | Votes | FittedLaplace
KINDS: Mapping[str, type[Predictor]] = {
    "mlp": TrainedNetwork,
    "temperature": FittedTemperature,
    "neighbours": Votes,
    "laplace": FittedLaplace,
}


@dataclass(frozen=True, slots=True)
class HeadCard:
    """The card of a head, or what the card of a result repeats of it.

    Attributes:
        name: name of the head.
        kind: "mlp", "temperature", "neighbours" or "laplace".
        predictor: how it predicts, according to its kind.
        features: feature set that it was fitted to.
        model, model_weights_sha256: the sensing network of these features.
        train_rows: number of rows that it was fitted to.
    """

    name: str
    kind: str
    predictor: Predictor
    features: str = ""
    model: str = ""
    model_weights_sha256: str = ""
    train_rows: int = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of a trained network; a head that was fitted has seed 0."""
        made = self.predictor
        return made.params.seeds if isinstance(made, TrainedNetwork) else (0,)

    def summary(self) -> dict[str, Any]:  # Any: JSON
        """What the card of a result repeats of it, as JSON; `from_dict` reads it."""
        facts: dict[str, Any]
        match self.predictor:
            case TrainedNetwork(spec, params, rows) as network:
                facts = {"spec": spec.to_dict(), "params": params.to_dict(), "rows": rows}
                further = ("selected_on", "tempered_on", "temperatures")
                facts |= {key: found for key in further if (found := getattr(network, key))}
            case FittedTemperature(temperature):
                facts = {"temperature": temperature}
            case Votes(k, reading, temperature):
                facts = {"spec": {"k": k, **reading.to_dict()}}
                facts |= {} if temperature is None else {"temperature": temperature}
            case FittedLaplace(structure, prior, prior_from, has_bias):
                facts = {"structure": structure, "prior": prior}
                facts |= {"prior_from": prior_from, "has_bias": has_bias}
        return {"head": self.name, "predictor": self.kind, "features": self.features, **facts}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Read a card with the name of its head; raises ``InputError`` for another format."""
        values = known(values, "card of a head")
        what = f"card of head '{values.get('head')}'"
        spec = known(values.get("spec", {}), what)
        kind = values.get("predictor", "mlp")
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"{what}: expected one of {', '.join(KINDS)}, found {kind!r}")
        facts = {**values, "spec": spec, "k": spec.get("k"), "reading": spec}
        predictor = typed(KINDS[kind], facts, what)
        own = {"name": values.get("head"), "kind": kind, "predictor": predictor}
        return typed(cls, {**values, **own}, what)


def head_card(artifact: Artifact) -> HeadCard:
    """Read the card of a head.

    Raises:
        NotFoundError, DamagedError: the head is not finished, or was altered.
        InputError: it is of version 0.1, where heads had one seed, or in another format.
    """
    values = artifact.card()
    if "predictor" not in values:
        raise InputError(
            f"head '{artifact.name}' was trained by intro-pipe 0.1 and can no longer be read: "
            f"train it again under another --name, or remove {artifact.storage.location}"
        )
    return HeadCard.from_dict({**values, "head": artifact.name})


def further_of(card: HeadCard) -> FurtherArrays:
    """What a head reads besides features and logits."""
    made = card.predictor
    return made.spec.further if isinstance(made, TrainedNetwork) else FurtherArrays()


def origin_of(feature_set: FeatureSet) -> dict[str, str]:
    """Facts of a card: which features and which network a head belongs to."""
    model = FeaturePlan.of(feature_set.plan).model
    return {
        "features": feature_set.name,
        "model": model.name,
        "model_weights_sha256": model.weights_sha256,
    }
