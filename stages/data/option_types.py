"""Types of options that several stages share."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Strict,
)

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.stage import Several
from stages.csv_text import ESCAPE_FORMULAS
from stages.data.corruptions.cells import ALL, cells_of
from stages.data.corruptions.names import C_BAR, CORRUPTIONS, CURE, ROTATION

FeatureSetName = Annotated[str, Ref(("features",)), Written(metavar="FEATURES")]
ModelName = Annotated[str, Ref(("model",)), Written(metavar="MODEL")]
OutputName = Annotated[str, Written(metavar="NAME")]
ModelOutputName = Annotated[
    OutputName, Field(description="Name of the model. (default: the name of the network)")
]
Dataset = Annotated[
    str,
    Place.DATA,
    Written(metavar="DATA"),
    Field(
        description="Data set: a name from `intro-pipe datasets`, a name under the data root, a "
        "path, or a URL of Parquet files with images or of tar archives."
    ),
]
Split = Annotated[
    str,
    Written(metavar="SPLIT"),
    Field(
        description="Split of the data set: train, test, or another name, such as val; all for "
        "class folders without splits."
    ),
]
Network = Annotated[str, Place.NETWORK, Written(metavar="NETWORK")]
LastLayer = Annotated[
    str,
    Field(
        description="Name of the last linear layer, if it cannot be found automatically; NAME+NAME "
        "if the logits are the mean of two layers."
    ),
]
Corruption = Annotated[str, OneOf(tuple(dict.fromkeys((*CORRUPTIONS, *CURE, ROTATION, *C_BAR))))]


def _cell(word: str) -> str:
    cells_of([word])
    return word


CorruptionCell = Annotated[
    str,
    AfterValidator(_cell),
    Written(words=lambda: (ALL, *CORRUPTIONS)),
]
ExifOrientation = Annotated[
    bool,
    Field(
        description="Rotate photographs according to their EXIF orientation, which the loaders of "
        "torchvision and timm ignore."
    ),
]


def fraction(value: object) -> object:
    """A fraction such as ``1/255`` as a number; other text is left for the type to check."""
    if not isinstance(value, str):
        return value
    try:  # a Fraction of 1e999999999 would be computed digit by digit
        return float(Fraction(value) if "/" in value else value)
    except (ValueError, ZeroDivisionError, OverflowError):
        return value


def _two(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("expected two numbers, the values of black and white")
    return value


ValueRange = Annotated[
    Annotated[tuple[FiniteFloat, FiniteFloat], Strict(False), BeforeValidator(_two)],
    Written(metavar="LOW,HIGH"),
    Field(
        description="Values that become black and white in grey image files with more than 8 bits, "
        "such as 0,65535 or 0,4095. (default: such files are failed rows)"
    ),
]
Limit = Annotated[
    PositiveInt | None,
    Field(description="Use only the first N rows; in an image folder these are of one class."),
]


def _flips(text: str) -> str:
    from stages.data.flips import Flips

    return str(Flips.of(text))


FlipLabels = Annotated[str, AfterValidator(_flips), Written(metavar="KIND:SHARE[:SEED]")]
"""Flipped labels, as text of `stages.data.flips.Flips`."""

Resamples = Annotated[
    NonNegativeInt,
    Field(description="Bootstrap resamples of the images; below 100, no intervals are computed."),
]


def _names_in(file: str) -> tuple[str, ...]:
    from pathlib import Path

    from stages.data.classes import read_classes

    return read_classes(Path(file))


ClassNames = Annotated[
    Several[str],
    Place.FILE,
    Written(metavar="FILE", read=_names_in),
    Field(
        description="Text file with one class name per line, in the order of the network's "
        "outputs; in a recipe, the names. (default: the order of the data set; string order for "
        "an image folder)"
    ),
]
AcceptUnstable = Annotated[
    bool,
    Field(
        description="Accept a network whose output for an image depends on chance or on the other "
        "images of its batch. The model and every plan record it."
    ),
]
EscapeFormulas = Annotated[bool, Field(description=ESCAPE_FORMULAS)]
