"""Check that images of data sets are comparable: resized by one rule, and not shared."""

from __future__ import annotations

from collections.abc import Sequence

from stages.data.resize import ONE_LAYOUT
from stages.data.source import ImageSource
from stages.data.stored_sizes import shape_of
from stages.errors import InputError
from stages.ood.overlap import check_apart


def check_comparable(inside: ImageSource, outsides: Sequence[ImageSource]) -> None:
    """Check that a detector can only distinguish data sets by the content of their images.

    Raises:
        InputError: one side is stretched and the other cropped, or they share images.
    """
    _check_shapes(inside, outsides)
    check_apart(inside, outsides)


def _check_shapes(inside: ImageSource, outsides: Sequence[ImageSource]) -> None:
    """Refuse to compare photographs that are stretched with photographs that are cropped.

    A detector would distinguish them by their shape. Images that are square, or that keep their
    shape for another reason, such as CIFAR's, may be compared with either.

    Raises:
        InputError: one side is stretched and the other cropped; the message has the remedy.
    """
    ours = shape_of(inside)
    for outside in outsides:
        theirs = shape_of(outside)
        if {ours, theirs} == {"stretched", "cropped"}:
            raise InputError(
                f"ood: images of {inside.name} are {ours} ({inside.resize}), those of "
                f"{outside.name} are {theirs} ({outside.resize}), expected one rule for both: "
                f"{ONE_LAYOUT}, or make the images square first"
            )
