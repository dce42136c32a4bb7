"""Classes and preprocessing that libraries publish for their networks, which weights lack."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.resize import Resize
from stages.data.source import ImageSource
from stages.errors import DataNotFoundError, InputError
from stages.sensing.card import Normalisation
from stages.sensing.hf_networks import hf_class_names, hf_preprocessing
from stages.sensing.timm_networks import timm_preprocessing
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.trust import HF, TIMM, TORCHVISION


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image file becomes the input of a network."""

    resizing: Resize
    normalisation: Normalisation


@dataclass(frozen=True, slots=True)
class Published:
    """What a library publishes for a network, or for a file of weights.

    Attributes:
        class_names: names of the outputs; empty if they are not published.
        preprocessing: how images become the network's input; None for a preset of torchvision
            other than the one that all its classification networks have.
        of: what the preprocessing belongs to, for messages.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    of: str = "published weights; images are prepared as published"


def published(network: str, weights: str | Path, image_size: int | None = None) -> Published | None:
    """What the library of a network publishes for it; None if it publishes nothing.

    torchvision publishes classes and preprocessing beside each file of weights. A file is found by
    its content, so it may have been renamed. timm publishes preprocessing for each network,
    whatever its weights.

    Args:
        network: a name as in `build_network`.
        weights: file of its weights.
        image_size: input size in pixels, if it is not the published one; timm also publishes how
            images become that size.

    Raises:
        InputError: timm has no such network, or prepares images in a way that is not supported.
    """
    if network.startswith(TIMM):
        preprocessing = Preprocessing(*timm_preprocessing(network, image_size))
        return Published((), preprocessing, "images are prepared as in timm's configuration")
    if network.startswith(HF):
        return _published_on_hub(network)
    path = Path(weights)
    if not network.startswith(TORCHVISION) or not path.is_file():
        return None
    if not (files := published_files(network)):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = (facts for start, facts in files.items() if digest.startswith(start))
    return next(found, None)


def _published_on_hub(network: str) -> Published:
    """What a folder of transformers says; without an image processor only the classes."""
    try:
        preprocessing = Preprocessing(*hf_preprocessing(network))
    except DataNotFoundError:
        preprocessing = None
    of = "images are prepared as in preprocessor_config.json"
    return Published(hf_class_names(network), preprocessing, of)


def published_files(network: str) -> dict[str, Published]:
    """The start of the SHA-256 of each file published for a network, and what belongs to it.

    Published files carry it in their names: ``resnet50-0676ba61.pth``.
    """
    name = network.removeprefix(TORCHVISION).partition(",")[0]  # settings follow the comma
    try:
        weights = list(import_torchvision().models.get_model_weights(name))
    except (ImportError, ValueError):  # there are no published weights to compare with
        return {}
    starts = ((re.search(r"[-_]([0-9a-f]{8,})\.pth$", each.url), each) for each in weights)
    return {start[1]: _published(each) for start, each in starts if start}


def _published(weights: Any) -> Published:  # Any: torchvision's enumeration has no types
    return Published(
        tuple(weights.meta.get("categories") or ()), _preprocessing(weights.transforms())
    )


def _preprocessing(preset: Any) -> Preprocessing | None:  # Any: torchvision's has no types
    """The preset ``ImageClassification``: resize, centre crop, then normalise."""
    if type(preset).__name__ != "ImageClassification":
        return None
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    resizing = Resize((crop, crop), resize, preset.interpolation.value)
    return Preprocessing(resizing, Normalisation(tuple(preset.mean), tuple(preset.std)))


def check_published_order(source: ImageSource, categories: Sequence[str], weights: str) -> None:
    """Check that classes of a data set have the labels that published weights give them.

    Classes with other names than in the weights, such as WordNet ids, cannot be compared.

    Raises:
        InputError: a class with a known name has the label of another class.
    """
    outputs: dict[str, set[int]] = {}  # ImageNet has two kinds of crane
    for output, name in enumerate(categories):
        outputs.setdefault(name, set()).add(output)
    wrong = [
        (label, name)
        for label, name in enumerate(source.class_names)
        if label not in outputs.get(name, {label})
    ]
    if wrong:
        label, name = wrong[0]
        raise InputError(
            f"{weights}: the published weights have class {name!r} at output {min(outputs[name])}, "
            f"{source.name} has it at label {label} ({len(wrong)} of {source.n_classes} classes "
            "differ): give the classes in the order of the weights with --classes FILE"
        )
