"""The options of training methods: those of ``train-sensing`` that only some methods have."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from pipeline.fields import OneOf
from stages.sensing.methods.method_params import METHODS, AugMix, Noise

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
MixWidth = Annotated[
    PositiveInt,
    Field(
        description="augmix: number of chains of operations that are mixed. "
        f"(default: {AugMix().mix_width})"
    ),
]
MixDepth = Annotated[
    PositiveInt,
    Field(description="augmix: operations in a chain. (default: 1 to 3, at random)"),
]
MixSeverity = Annotated[
    float,
    Field(
        gt=0.1,
        le=10,
        description="augmix: upper bound of the level of an operation, of 10. "
        f"(default: {AugMix().mix_severity:g})",
    ),
]
JsdWeight = Annotated[
    NonNegativeFloat,
    Field(
        description="augmix: weight in the loss of the divergence between an image and its "
        f"mixtures. (default: {AugMix().jsd_weight:g})"
    ),
]
