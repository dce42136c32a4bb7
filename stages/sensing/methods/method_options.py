"""The options of training methods: those of ``train-sensing`` that only some methods have."""

from typing import Annotated

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.fields import OneOf, Written
from pipeline.stage import Several
from stages.data.option_types import ModelName, fraction
from stages.sensing.methods.method_params import (
    METHODS,
    Adversarial,
    Attack,
    AugMix,
    Noise,
    SimClr,
)

MethodName = Annotated[
    str,
    OneOf(tuple(METHODS)),
    Field(
        description=f"Training method: {', '.join(METHODS)}. Options of a single method begin "
        "with its name. (default: from the preset)"
    ),
]
_ADVERSARIAL = Adversarial()
AttackName = Annotated[
    Attack,
    Field(
        description="adversarial: i-fgsm attacks the model --attacked once, before the training; "
        f"pgd attacks the network in training, in every batch. (default: {_ADVERSARIAL.attack})"
    ),
]
AttackedModel = Annotated[
    ModelName,
    Field(description="adversarial: trained model of the store that i-fgsm attacks."),
]
Epsilon = Annotated[
    float,
    BeforeValidator(fraction),
    Written(metavar="X", read=fraction),
    Field(
        ge=0,
        le=1,
        description="adversarial: largest change of a pixel in [0, 1]. (default: 8/255)",
    ),
]
Step = Annotated[
    float,
    BeforeValidator(fraction),
    Written(metavar="X", read=fraction),
    Field(
        gt=0,
        le=1,
        description="adversarial: size of a step, for pixels in [0, 1]. "
        f"(default: {_ADVERSARIAL.step})",
    ),
]
Steps = Annotated[
    PositiveInt,
    Field(description=f"adversarial: number of steps. (default: {_ADVERSARIAL.steps})"),
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
        description="augmix: upper bound of the level of an operation, up to 10. "
        f"(default: {AugMix().mix_severity:g})",
    ),
]
JsdWeight = Annotated[
    NonNegativeFloat,
    Field(
        description="augmix: weight of the divergence between an image and its mixtures in the "
        f"loss. (default: {AugMix().jsd_weight:g})"
    ),
]
NtXentTemperature = Annotated[
    PositiveFloat,
    Field(
        description="simclr: temperature of the NT-Xent loss. "
        f"(default: {SimClr().nt_xent_temperature})"
    ),
]
Projection = Annotated[
    Several[PositiveInt],
    Field(
        description="simclr: widths of the hidden layer and of the output of the projection head. "
        f"(default: {','.join(map(str, SimClr().projection))})"
    ),
]
