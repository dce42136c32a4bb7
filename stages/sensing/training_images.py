"""The images of a training: those that it reads, and what they have to be."""

from __future__ import annotations

import dataclasses

from pipeline.workspace import Workspace
from stages.data.classes import check_same_classes
from stages.data.flips import Flips
from stages.data.opened import opened
from stages.data.registry import SourceSpec
from stages.data.source import ImageSource, require_labels
from stages.errors import InputError
from stages.sensing.methods.method_params import check_images
from stages.sensing.train_params import TrainParams


def with_test_images(
    workspace: Workspace, train: SourceSpec, test_split: str
) -> tuple[SourceSpec, SourceSpec | None]:
    """The training images, and the test images if the data set has any.

    Raises:
        InputError: the data set does not exist or lacks a chosen test split, or the classes of the
            two differ.
    """
    test = dataclasses.replace(train, split=test_split)
    try:
        found = opened(workspace, test)
    except InputError:
        if test_split != "test":
            raise
        return train, None
    check_same_classes(opened(workspace, train), found)
    return train, test


def check_training_images(source: ImageSource, params: TrainParams) -> None:
    """Check what can be known without reading the images; the training checks the rest.

    Args:
        source: the training images.
        params: parameters of the training.

    Raises:
        InputError: there are no labels, no other class to flip them to, or too few images or images
            of another size than the method needs.
    """
    require_labels(source)
    if params.flip_labels:
        Flips.of(params.flip_labels).check(source.n_classes)
    check_images(params.method, source.n_rows, source.image_size)
