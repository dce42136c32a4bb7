"""What the names on a page mean: f and its input, each contender, and a cell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from pipeline.terminal import counted
from stages.introspection.head_card import (
    FittedLaplace,
    FittedTemperature,
    HeadCard,
    TrainedNetwork,
    Votes,
)
from stages.introspection.reading import Reading
from stages.reflection.feature_plan import ModelFacts, SourceFacts
from stages.report.results import Judged
from stages.report.seen_images import share_seen
from store.catalog import FeatureStore

GRADIENTS = (
    "introspective network: a small network that predicts the class again, from the gradients of "
    "f's last layer that would turn f's prediction into each of the classes"
)

FEW = 3
"""Names with the same meaning that are still explained one by one."""

IMAGES_ARE = "these images are"
AS_MODEL, TRAINED_ON, FITTED_ON = "in the store as model", "trained on", "fitted on"
EVALUATED_ON = "evaluated on other features,"
TEMPERED_ON = "its logits are divided by a temperature for each seed, fitted on"


class Meaning(NamedTuple):
    """What a name means in one result.

    Attributes:
        what: what it is.
        facts: how a further fact begins, such as `TRAINED_ON`, and how it ends in this result.
    """

    what: str
    facts: Mapping[str, str]


def legend_of(store: FeatureStore, judged: Sequence[Judged]) -> dict[str, str]:
    """The names in the tables and figures of a page, each with its meaning in plain English."""

    @cache
    def marked(features: str) -> str:
        using = (each for each in judged if features in _fitted_on(each.heads.values()))
        evaluated = dict.fromkeys(each.card.features for each in using)
        return features + _seen([share_seen(store, each, features) for each in evaluated])

    found = {"f": _joined(map(_f_of, judged))}
    for label in dict.fromkeys(label for each in judged for label in each.others):
        named = [each for each in judged if label in each.others]
        found[label] = _joined(_contender_of(each, label, marked) for each in named)
    found = _grouped(found)
    if cells := "; ".join(dict.fromkeys(filter(None, map(_cells_of, judged)))):
        found["cell"] = cells
    return found


def _fitted_on(heads: Collection[HeadCard]) -> set[str]:
    """The feature sets on which heads were trained, selected and fitted."""
    found = {head.features for head in heads}
    for head in heads:
        if isinstance(network := head.predictor, TrainedNetwork):
            found |= {network.selected_on, network.tempered_on}
    return found


def _seen(shares: Sequence[float]) -> str:
    """A note on features to which a head was fitted, from its share of each result's images.

    >>> _seen([0.0, 0.5])
    ' (includes some of the images that are evaluated here)'
    """
    if not any(shares):
        return ""
    some = "" if min(shares) == 1.0 else "some of "
    return f" (includes {some}the images that are evaluated here)"


def _grouped(meanings: dict[str, str]) -> dict[str, str]:
    """Names with the same meaning together, if there are many of them."""
    names: dict[str, list[str]] = {}
    for name, text in meanings.items():
        names.setdefault(text, []).append(name)
    groups = {text: each if len(each) > FEW else [] for text, each in names.items()}
    first = {each[0]: ", ".join(each) for each in groups.values() if each}
    rest = {name for each in groups.values() for name in each[1:]}
    return {first.get(name, name): text for name, text in meanings.items() if name not in rest}


def _joined(meanings: Iterable[Meaning]) -> str:
    """Different meanings one after another; results with the same ``what`` are described once.

    >>> a, b = (Meaning("an MLP", {TRAINED_ON: name}) for name in "ab")
    >>> _joined([a, b, Meaning("a temperature", {})])
    'an MLP; trained on a, b; a temperature'
    >>> _joined([a, Meaning("an MLP", {TRAINED_ON: "a", "calibrated on": "c"})])
    'an MLP; trained on a; in some results, calibrated on c'
    >>> _joined(Meaning("an MLP", {TRAINED_ON: name}) for name in "abcde")
    'an MLP; trained on a, ..., e (5)'
    """
    results: dict[str, list[Mapping[str, str]]] = {}
    for what, facts in meanings:
        results.setdefault(what, []).append(facts)
    return "; ".join("; ".join([what, *_facts_of(found)]) for what, found in results.items())


def _facts_of(results: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Each fact once, with all that it is in some results; old cards leave some empty."""
    for fact in dict.fromkeys(fact for each in results for fact in each):
        found = [each[fact] for each in results if each.get(fact)]
        where = "" if len(found) == len(results) else "in some results, "
        if found:
            yield f"{where}{fact} {_listed(list(dict.fromkeys(found)))}"


def _listed(names: Sequence[str]) -> str:
    if len(names) <= FEW:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]} ({len(names)})"


def _f_of(found: Judged) -> Meaning:
    return _network_of(found.network, found.card.model, found.model, found.source)


def _contender_of(found: Judged, label: str, marked: Callable[[str], str]) -> Meaning:
    """A head or f of a second feature set, with the features if those are not the first ones."""
    if label in found.heads:
        meaning = _head_of(found.heads[label], marked)
    else:
        assert found.beside is not None  # its f is the only contender that is no head
        model, source = found.beside
        meaning = _network_of(model.network or model.name, model.name, model, source)
    if not found.card.is_beside(label):
        return meaning
    return Meaning(meaning.what, {**meaning.facts, EVALUATED_ON: found.card.features_of(label)})


def _network_of(network: str, name: str, model: ModelFacts, source: SourceFacts) -> Meaning:
    """The network, and how images become its input."""
    text, stored = f"the network {network}", {AS_MODEL: name}
    if model.image_size is None:
        return Meaning(text, stored)
    text += f"; its input: images of {model.image_size}x{model.image_size} pixels"
    if source.resize:
        how = "as stored" if source.resize == "none" else f"resized ({_spelled(source.resize)})"
        stored = {IMAGES_ARE: how, **stored}
    if model.mean and model.std:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in each) for each in (model.mean, model.std)
        )
        text += f", minus the mean {mean} and divided by the std {std} of each channel"
    if model.batch_statistics:
        text += (
            "; its batch norm uses the mean and variance of groups of "
            f"{counted(model.batch_statistics, 'row')}, not those of training"
        )
    return Meaning(text, stored)


def _spelled(rule: str) -> str:
    """A rule of resizing with words in place of its signs.

    >>> _spelled("bicubic-antialias shorter side ->256, centre 224x224")
    'bicubic, antialiased, shorter side to 256, centre 224x224'
    """
    return rule.replace("-antialias", ", antialiased,").replace("->", " to ").replace("  ", " ")


def _head_of(head: HeadCard, marked: Callable[[str], str]) -> Meaning:
    """How a contender predicts, and what it was trained on or fitted to."""
    features = marked(head.features)
    match head.predictor:
        case FittedTemperature(temperature):
            what = (
                "f with its logits divided by a temperature, which changes confidences, not "
                "predictions"
            )
            return Meaning(what, {FITTED_ON: features, "T =": f"{temperature:.4g}"})
        case FittedLaplace(structure, prior):
            what = (
                f"f with a Gaussian over the weights of its last layer ({structure} Laplace "
                "approximation), which lowers confidences where the training rows say little"
            )
            return Meaning(what, {FITTED_ON: features, "prior precision": f"{prior:.4g}"})
        case Votes(k, temperature=temperature):
            how = f", each with the weight exp(cosine / {temperature:g})" if temperature else ""
            what = f"the {k} nearest training rows vote for the class{how}"
            return Meaning(what, {"the rows are those of": features})
        case TrainedNetwork() as network:
            facts = {TRAINED_ON: features}
            if network.selected_on:
                facts["epoch selected on"] = marked(network.selected_on)
            if network.tempered_on:
                facts[TEMPERED_ON] = marked(network.tempered_on)
            return Meaning(_network_on(network.spec.reading), facts)


def _network_on(reading: Reading) -> str:
    """What a trained head is, by what it reads."""
    if reading.reads == "reflection":
        return GRADIENTS
    named = {"reflection": "r_x", "statistics": "statistics of its feature maps"}
    listed = "f's " + ", ".join(named.get(part, part) for part in reading.parts)
    control = "" if reading.has_gradient else "control: "
    return f"{control}a small network that predicts the class from {listed}"


def _cells_of(found: Judged) -> str:
    """What the mean of an evaluation is taken over; empty for a detection."""
    card = found.card
    if card.detector is not None:
        return ""
    if not card.cells.columns:
        return f"all {card.rows:,} rows are one group"
    return (
        f"the rows of one value of {' and '.join(card.cells.columns)}; each of the "
        f"{card.cells.count:,} cells counts equally in a mean"
    )
