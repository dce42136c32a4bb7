"""Checks that a data set has the classes of a network, in its order. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.terminal import printable_line
from stages.data.class_names import first_few, numbers
from stages.data.classes import class_notes, counted_classes, order_note
from stages.data.known import KNOWN
from stages.data.source import ImageSource, ReaderSource
from stages.errors import InputError
from stages.sensing.card import ModelCard

MAX_SHOWN = 20
"""Classes that are printed; JSON has all of them."""


def check_classes(source: ImageSource, card: ModelCard) -> None:
    """Check that every label of a data set means the same class to the network.

    Names must be equal and in the same order. If one side only numbers its classes, the number of
    classes must match. A data set without labels matches every network: its labels are -1, and
    metrics ignore them.

    Raises:
        InputError: the classes differ, or are in another order.
    """
    names = source.class_names
    if not names or names == card.class_names:
        return
    if not can_compare_classes(source, card):
        n_missing = card.n_classes - len(names)
        # Arrays only know the labels that occur in them: the last class may have no sample.
        if n_missing == 0 or (n_missing > 0 and _are_numbers(names)):
            return
    elif sorted(names) == sorted(card.class_names):
        raise InputError(_other_order(source, card))
    raise InputError(_other_classes(source, card))


def can_compare_classes(source: ImageSource, card: ModelCard) -> bool:
    """Whether both sides name their classes; if not, only their number is checked.

    Numbers count as names if the data set says so (digits), and for a model trained on such a set.
    """
    names, known = source.class_names, card.class_names
    if _are_numbers(known):
        return not _are_numbers(names) and _are_known(known, card.family)
    # A corrupted copy of digits does not say that its numbers are names; its family does.
    return source.is_named or _are_known(names, source.family)


def has_some_classes(source: ImageSource, card: ModelCard) -> bool:
    """Whether a data set has some of the classes of a network and no others, by their names."""
    is_part = set(source.class_names) < set(card.class_names)
    return bool(source.class_names) and is_part and can_compare_classes(source, card)


def other_label(names: Sequence[str], others: Sequence[str]) -> str | None:
    """The first label to which two lists of classes give different names, as text.

    ``None`` if they agree, or if one of them is empty or contains only numbers.
    """
    both = tuple(names), tuple(others)
    if any(_are_numbers(each) for each in both) or both[0] == both[1]:
        return None
    if len(names) != len(others):
        return f"{len(names)} classes, found {len(others)}"
    label = next(at for at, name in enumerate(names) if name != others[at])
    return f"label {label} is {names[label]!r}, found {others[label]!r}"


def output_note(source: ImageSource, card: ModelCard, *, is_new: bool) -> str | None:
    """One line if names do not determine which output of a network is which class.

    Args:
        is_new: whether the network gets its names from this data set.
    """
    names = source.class_names
    if not names or (not is_new and names == card.class_names[: len(names)]):
        return None
    known = names if is_new else card.class_names or names
    shown = first_few([f"{label} {name}" for label, name in enumerate(known)])
    return (
        f"{card.network}: its outputs are assumed to be in the order of the classes of "
        f"{source.name} ({shown}), since the names cannot be compared; --dry-run lists all, "
        "--classes FILE sets another order"
    )


def output_notes(
    source: ReaderSource, card: ModelCard, *, is_ordered: bool, is_new: bool
) -> list[str]:
    """Check the classes against a network's; notes on how outputs and classes were matched.

    Args:
        source: the data set.
        card: of the network.
        is_ordered: whether the user has given the order of the classes.
        is_new: whether the names of the network's outputs come from this data set only.

    Raises:
        InputError: the classes do not match.
    """
    check_classes(source, card)
    notes = class_notes(source, is_ordered=is_ordered or not is_new)
    if not is_ordered and not (is_new and order_note(source.name, source.class_names)):
        notes += filter(None, [output_note(source, card, is_new=is_new)])
    return notes


def listed_classes(source: ReaderSource, card: ModelCard) -> list[dict[str, Any]]:  # Any: JSON
    """Label, name and number of images of each class, as the network's outputs have them.

    The number is ``None`` if counting would require reading the images.
    """
    counts = counted_classes(source)
    n_images = [None] * card.n_classes if counts is None else counts.tolist()
    n_images += [0] * (card.n_classes - len(n_images))
    names = source.class_names if source.is_named or not card.class_names else card.class_names
    return [
        {"label": label, "name": name, "images": n}
        for label, (name, n) in enumerate(zip(names, n_images, strict=False))
    ]


def shown_classes(classes: list[dict[str, Any]]) -> str:
    """The classes as lines; empty without classes."""
    if not classes:
        return ""
    lines = [
        f"  {each['label']:>4}  {printable_line(each['name'])}"
        + ("" if each["images"] is None else f"  ({each['images']:,})")
        for each in classes[:MAX_SHOWN]
    ]
    if len(classes) > MAX_SHOWN:
        lines.append(f"  and {len(classes) - MAX_SHOWN:,} more: --json lists all")
    return "\n".join(
        ["\nclasses in the order of the network's outputs (and their images):", *lines]
    )


def _are_known(names: tuple[str, ...], family: str) -> bool:
    return bool(names) and family in KNOWN and KNOWN[family].class_names == names


def _are_numbers(names: tuple[str, ...]) -> bool:
    return names == numbers(len(names))


def _other_order(source: ImageSource, card: ModelCard) -> str:
    pairs = enumerate(zip(card.class_names, source.class_names, strict=True))
    different = [(at, ours, theirs) for at, (ours, theirs) in pairs if ours != theirs]
    shown = "; ".join(f"{at}: {ours!r}, not {theirs!r}" for at, ours, theirs in different[:3])
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    return (
        f"model '{card.name}' has the classes of {source.name} in another order ({shown}{more}): "
        "give the model's order with --classes FILE, or, if that order is wrong, import the "
        "network again under another name"
    )


def _other_classes(source: ImageSource, card: ModelCard) -> str:
    names = source.class_names
    found = f"{len(names)} ({first_few(names)})"
    start = (
        f"model '{card.name}' has {card.n_classes} classes ({first_few(card.class_names)}), "
        f"{source.name} has {found}: "
    )
    if set(names) < set(card.class_names):
        return (
            start + "give --classes FILE with all of the model's classes in its order, one per line"
        )
    return start + (
        "choose another --model, train one with `intro-pipe train-sensing --dataset "
        f"{source.name}`, or, if they are the same classes, give them the same names"
    )
