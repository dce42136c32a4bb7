"""Options of ``train-sensing`` that are the same for all methods."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.fields import OneOf, Place, Written
from stages.data.option_types import FlipLabels, ModelName, Network
from stages.sensing.card import Precision
from stages.sensing.train_params import PRESETS, Augmentation, Optimiser, Schedule, Trained

TrainedNetwork = Annotated[
    Network,
    Field(
        description="Network to train: resnet18, resnet34, resnet50, resnet101, vgg16, wrn40-2, "
        "cnn2, torchvision:NAME, timm:NAME, hf:FOLDER, hf:OWNER/NAME, file.py:factory or "
        "package.module:factory. NETWORK+128 has a hidden layer of that width, with ReLU, in the "
        "classifier. (default: from the preset)"
    ),
]
Preset = Annotated[
    str,
    OneOf(tuple(PRESETS)),
    Field(
        description="paper: 200 epochs, flips. paper-crop: crops as well. quick: cnn2, 20 epochs. "
        "fine-tune: 20 epochs, flips, a lower learning rate. augmix: wrn40-2, 100 epochs, as "
        "published. simclr: Adam, 500 epochs, as published. linear: Adam, 100 epochs, for --train. "
        "(default: the preset with the name of --method, else paper)"
    ),
]
FromModel = Annotated[
    ModelName,
    Field(
        description="Model of the store to start from, in place of --weights; its network and "
        "preprocessing are the defaults."
    ),
]
TrainedLayers = Annotated[
    Trained,
    Field(
        description="Layers to train: all, last-layer, or classifier (the hidden layers of "
        "NETWORK+128 and the last one); the others are frozen in eval mode."
    ),
]
OptimiserName = Annotated[
    Optimiser, Field(description="Optimiser: sgd or adam. (default: from the preset)")
]
TestSplit = Annotated[
    str,
    Written(metavar="SPLIT"),
    Field(description="Split on which the accuracy is reported, if the data set has it."),
]
Epochs = Annotated[PositiveInt, Field(description="Number of epochs. (default: from the preset)")]
BatchSize = Annotated[
    int, Field(ge=2, description="Images per training step. (default: from the preset)")
]
LearningRate = Annotated[
    PositiveFloat, Field(description="Initial learning rate. (default: from the preset)")
]
WeightDecay = Annotated[
    float, Field(ge=0, description="Weight decay of the optimiser. (default: from the preset)")
]
AugmentationName = Annotated[
    Augmentation,
    Field(description="Augmentation: none, flip or crop_flip. (default: from the preset)"),
]
ScheduleName = Annotated[
    Schedule,
    Field(
        description="Learning rate schedule: steps, one-cycle or cosine. (default: from the preset)"
    ),
]
LabelSmoothing = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Label smoothing: share of each target that is spread over all classes.",
    ),
]
TrainingPrecision = Annotated[
    Precision,
    Field(description="Precision of the training: fp32 or bf16. (default: from the preset)"),
]
Seed = Annotated[NonNegativeInt, Field(description="Seed of weights, order and augmentation.")]
HeldOut = Annotated[
    NonNegativeInt,
    Field(description="Number of rows, drawn with the seed, that the network is not trained on."),
]
HeldOutUntil = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Fraction of the epochs after which the held-out rows are included.",
    ),
]
KeepEvery = Annotated[
    PositiveInt,
    Field(
        description="Interval in epochs at which to keep intermediate models, beginning with "
        "NAME-epoch-001."
    ),
]
TrainedSamples = Annotated[
    str,
    Place.FILE,
    Written(metavar="FILE"),
    Field(
        description="CSV file with a column sample_id: train only on these samples, such as those "
        "that prune kept. (default: all)"
    ),
]
FlippedLabels = Annotated[
    FlipLabels,
    Field(
        description="Flip a share of the training labels on purpose, to measure how wrong labels "
        "are found: symmetric:0.2 to any other class, pairwise:0.2 to the next class; "
        "a third part is the seed, 0 by default."
    ),
]
