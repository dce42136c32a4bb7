"""What the names on a page mean: f and its input, each contender, and a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stages.introspection.head_card import (
    FittedLaplace,
    FittedTemperature,
    HeadCard,
    TrainedNetwork,
    Votes,
)
from stages.report.results import Judged

GRADIENTS = (
    "introspective network: a small network that predicts the class again, from the gradients of "
    "f's last layer that would turn f's prediction into each of the classes"
)

FEW = 3
"""Names with the same meaning that are still explained one by one."""

TRAINED_ON, AS_MODEL = "; trained on ", "; in the store as model "


def legend_of(judged: Sequence[Judged]) -> dict[str, str]:
    """The names in the tables and figures of a page, each with its meaning in plain English."""
    found = {"f": _joined(map(_network_of, judged))}
    for label in dict.fromkeys(label for each in judged for label in each.heads):
        heads = [(each, each.heads[label]) for each in judged if label in each.heads]
        found[label] = _joined(_head_of(each, head) for each, head in heads)
    found = _grouped(found)
    if cells := _joined(map(_cells_of, judged)):
        found["cell"] = cells
    return found


def _grouped(meanings: dict[str, str]) -> dict[str, str]:
    """Names with the same meaning together, if there are many of them."""
    names: dict[str, list[str]] = {}
    for name, text in meanings.items():
        names.setdefault(text, []).append(name)
    groups = {text: each if len(each) > FEW else [] for text, each in names.items()}
    first = {each[0]: ", ".join(each) for each in groups.values() if each}
    rest = {name for each in groups.values() for name in each[1:]}
    return {first.get(name, name): text for name, text in meanings.items() if name not in rest}


def _joined(texts: Iterable[str]) -> str:
    """Different texts one after another; what several of them begin with is written once.

    >>> _joined(["an MLP; trained on a", "an MLP; trained on b", "a temperature"])
    'an MLP; trained on a, b; a temperature'
    >>> _joined(f"an MLP; trained on {each}" for each in "abcde")
    'an MLP; trained on a, ..., e (5)'
    """
    places: dict[tuple[str, str], list[str]] = {}
    for text in dict.fromkeys(filter(None, texts)):
        link = next((each for each in (TRAINED_ON, AS_MODEL) if each in text), TRAINED_ON)
        what, _, place = text.partition(link)
        places.setdefault((what, link), []).append(place)
    return "; ".join(
        what + (link + _listed(found) if any(found) else "")
        for (what, link), found in places.items()
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= FEW:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]} ({len(names)})"


def _network_of(found: Judged) -> str:
    """The network, and how images become its input."""
    model, source = found.model, found.source
    text, name = f"the network {found.network}", AS_MODEL + found.card.model
    if model.image_size is None:
        return text + name
    text += f"; its input: images of {model.image_size}x{model.image_size} pixels"
    if source.resize:
        text += (
            ", as stored" if source.resize == "none" else f", resized: {_spelled(source.resize)}"
        )
    if model.mean and model.std:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in each) for each in (model.mean, model.std)
        )
        text += f", minus the mean {mean} and divided by the std {std} of each channel"
    return text + name


def _spelled(rule: str) -> str:
    """A rule of resizing with words in place of its signs.

    >>> _spelled("bicubic-antialias shorter side ->256, centre 224x224")
    'bicubic, antialiased, shorter side to 256, centre 224x224'
    """
    return rule.replace("-antialias", ", antialiased,").replace("->", " to ").replace("  ", " ")


def _head_of(found: Judged, head: HeadCard) -> str:
    """How a contender predicts, and what it was trained on or fitted to."""
    same = ", the images that are evaluated here" if head.features == found.card.features else ""
    match head.predictor:
        case FittedTemperature(temperature):
            return (
                f"f with its logits divided by a temperature, {temperature:.4g}, fitted on "
                f"{head.features}{same}; it changes confidences, not predictions"
            )
        case FittedLaplace(structure, prior):
            return (
                f"f with a Gaussian over the weights of its last layer ({structure} Laplace "
                f"approximation, prior precision {prior:.4g}), fitted on {head.features}{same}; it "
                "lowers confidences where the training rows say little"
            )
        case Votes(k, temperature=temperature):
            how = f", each with the weight exp(cosine / {temperature:g})" if temperature else ""
            return f"the {k} nearest rows of {head.features}{same} vote for the class{how}"
        case TrainedNetwork(spec, selected_on=selected_on) as network:
            reads, parts = spec.reading.reads, spec.reading.parts
            named = {"reflection": "r_x", "statistics": "statistics of its feature maps"}
            listed = "f's " + ", ".join(named.get(part, part) for part in parts)
            control = "" if spec.reading.has_gradient else "control: "
            epoch = f"; of its epochs, the best on {selected_on} is kept" if selected_on else ""
            what = (
                GRADIENTS
                if reads == "reflection"
                else f"{control}a small network that predicts the class from {listed}"
            )
            if network.tempered_on:
                what += (
                    ", with its logits divided by a temperature for each seed, fitted on "
                    f"{network.tempered_on}"
                )
            return f"{what}{TRAINED_ON}{head.features}{same}{epoch}"


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
