"""Types of the options of `extract`: what is done to images and failed rows, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from pipeline.fields import OneOf, Written
from pipeline.stage import Several
from stages.data.augmenting import Flips
from stages.data.denoising import FILTERS, denoising_of
from stages.data.option_types import CorruptionCell, fraction
from stages.reflection.losses import LOSSES

Pixels = Annotated[
    float, BeforeValidator(fraction), Written(metavar="X", read=fraction), Field(gt=0, le=1)
]
"""A step in pixels in [0, 1]: 0.0014, or 1/255."""

Epsilon = Annotated[Pixels, Field(description="Radius of PGD, for pixels in [0, 1].")]
Step = Annotated[Pixels, Field(description="Step size of PGD, for pixels in [0, 1].")]
Steps = Annotated[PositiveInt, Field(description="Number of PGD steps; the last iterate is used.")]
PGD_STEP, N_PGD_STEPS = 1 / 255, 10
Rounding = Annotated[
    Literal["exact", "code"],
    Field(
        description="How PGD rounds to grey levels: exact, or code, as in the paper's code base, "
        "whose steps lose levels."
    ),
]


Corrupt = Annotated[
    Several[CorruptionCell],
    Field(
        description="Corruptions to apply when images are read, after resizing and cropping, "
        "separated by commas: fog:3, fog for all severities, or all for 19 corruptions at 5 "
        "severities. Constants are those of CIFAR-10-C for 32x32 pixels, of Tiny-ImageNet-C for "
        "64x64, else of ImageNet-C."
    ),
]


def _filter(word: str) -> str:
    denoising_of(word)
    return word


Denoise = Annotated[
    str,
    AfterValidator(_filter),
    Written(metavar="FILTER", words=lambda: FILTERS),
    Field(
        description="Filter that removes noise from the images, after resizing and --corrupt: "
        "nlm, median, gaussian, bilateral or tv. Its parameters may follow: nlm is short for "
        "nlm:10,10,7,21 (h, h_color, template and search window of OpenCV)."
    ),
]
Augmentation = Annotated[
    Flips,
    Field(
        description="Augmentation of each image, as in training, drawn from its row and "
        "--augmentation-seed: flip, or crop_flip to crop as well."
    ),
]
AugmentationSeed = Annotated[NonNegativeInt, Field(description="Seed of --augmentation.")]
NetworkInput = Annotated[
    Literal["model", "none"],
    Field(
        description="Normalisation of the input: model for the mean and std of the model, or none "
        "to feed pixels in [0, 1]."
    ),
]
BatchStatistics = Annotated[
    PositiveInt,
    Field(
        description="Let batch norm use the mean and variance of groups of N consecutive rows, as "
        "in training, in place of the running statistics. Shards are rounded down to whole groups."
    ),
]
Layer = Annotated[
    str, Field(description="Another layer whose per-image gradients are also stored.")
]
LayerLoss = Annotated[str, OneOf(tuple(LOSSES)), Field(description="Loss of those gradients.")]
Project = Annotated[
    PositiveInt, Field(description="Dimension to which those gradients are randomly projected.")
]
BatchSize = Annotated[
    PositiveInt,
    Field(description="Images per forward pass. (default: fitted to the network and memory)"),
]
ShardRows = Annotated[
    PositiveInt, Field(description="Images per shard, the unit of writing and resuming.")
]
FeatureMaps = Annotated[
    Several[str],
    Field(
        description="Layers whose feature maps are summarised in the array statistics, separated "
        "by commas: mean and standard deviation of each channel. auto for the output of each stage "
        "of a ResNet."
    ),
]
SampleRows = Annotated[
    PositiveInt,
    Field(
        description="Use only N rows, drawn at random, in their order. With --limit, they are "
        "drawn from the first rows."
    ),
]
Shuffle = Annotated[
    bool,
    Field(
        description="Put the rows in random order, within each corruption and severity, for groups "
        "of --batch-statistics with images of several classes. Each keeps its sample_id."
    ),
]
OutOfDistribution = Annotated[
    bool,
    Field(
        description="Accept images of other classes than the network's: they get no labels, unless "
        "the classes are the same."
    ),
]
RetryFailed = Annotated[
    bool,
    Field(
        description="Recompute only the rows that failed. If files were fixed in the meantime, the "
        "rows of all other images are reused."
    ),
]
AcceptFailed = Annotated[
    bool,
    Field(
        description="Accept any number of failed rows: the set then counts as complete without "
        "them. (default: at most 1 % of the rows, or 10)"
    ),
]
