"""Check that images of data sets are comparable: resized by one rule, and not shared."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.workspace import Workspace
from stages.data.opened import opened
from stages.data.planned_images import planned_images
from stages.data.planned_source import planned_source
from stages.data.resize import ONE_LAYOUT, shape_after
from stages.data.source import ImageSource
from stages.data.stored_sizes import shape_of
from stages.errors import InputError
from stages.ood.overlap import check_apart
from store.featureset import FeatureSet


def check_comparable(inside: ImageSource, outsides: Sequence[ImageSource]) -> None:
    """Check that a detector can only distinguish data sets by the content of their images.

    Raises:
        InputError: one side is stretched and the other cropped, or they share images.
    """
    _check_shapes(inside, outsides)
    check_apart(inside, outsides)


def check_shapes_of(workspace: Workspace, inside: FeatureSet, outside: FeatureSet) -> None:
    """Check stored sets whose model left the rule to the layout, as older versions did.

    Raises:
        InputError: the images of one set were stretched and those of the other cropped, or the
            images, which would show whether they are square, are not found.
    """
    planned = [each.plan["inputs"]["source"] for each in (inside, outside)]
    if {shape_after(planned_source(each).resize) for each in planned} != {"stretched", "cropped"}:
        return
    ours, theirs = (opened(workspace, planned_images(workspace, each, None)) for each in planned)
    _check_shapes(ours, [theirs])


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
