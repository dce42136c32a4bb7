"""The options of training methods: those of ``train-sensing`` that only some methods have."""

from typing import Annotated

from pydantic import Field, PositiveInt

from pipeline.fields import OneOf
from stages.sensing.methods.method_params import METHODS, Noise

MethodName = Annotated[
    str,
    OneOf(tuple(METHODS)),
    Field(
        description=f"Training method: {', '.join(METHODS)}; each has options of its own, marked "
        "with its name. (default: from the preset)"
    ),
]
PerDistortion = Annotated[
    PositiveInt,
    Field(
        description="noise: number of training images to which each of six distortions is applied. "
        f"(default: {Noise().per_distortion})"
    ),
]
