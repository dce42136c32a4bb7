"""Image classifiers in the form of Hugging Face's transformers: a folder, or an ID on the hub."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from stages.data.resize import INTERPOLATIONS, Resize
from stages.errors import DataNotFoundError, InputError
from stages.sensing.card import Normalisation
from stages.sensing.checkpoint import Checkpoint
from stages.sensing.hf_config import check_config
from stages.sensing.hub import file_on_hub
from stages.sensing.torchvision_ops import define_missing_operators
from stages.sensing.trust import HF
from store.disk import spelled_out
from store.errors import first_line

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_SIZES = ((301, 211), (97, 140))
"""Heights and widths of images on which the preprocessing is compared."""


def hf_network(network: str, n_classes: int | None) -> nn.Module:
    """Build a network of transformers with untrained weights. Code of a repository is not run.

    Args:
        network: ``hf:FOLDER`` or ``hf:OWNER/NAME``; it has a ``config.json``.
        n_classes: number of logits; ``None`` for that of the configuration.

    Raises:
        DataNotFoundError: there is no such configuration.
        InputError: it is not that of an image classifier, or transformers is not installed.
    """
    config = _config(network)
    if n_classes is not None and n_classes != config.num_labels:
        config.num_labels = n_classes
    try:
        built: nn.Module = _transformers(network).AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
    except Exception as error:  # transformers raises anything
        raise InputError(
            f"network {network}: transformers cannot build an image classifier from its {CONFIG} "
            f"({type(error).__name__}: {first_line(error)}); use a model for image classification"
        ) from error
    return built


def hf_file(network: str, *names: str) -> Path:
    """The first of these files in the folder of a network, or in its repository on the hub.

    Raises:
        DataNotFoundError: there is none, or the hub cannot be reached.
    """
    place = network.removeprefix(HF)
    folder = spelled_out(place)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise DataNotFoundError(
                f"network {network}: the folder has no {' or '.join(names)}; save the model and "
                "its image processor with save_pretrained"
            )
        return found
    try:
        return Path(file_on_hub(place, names))
    except Exception as error:  # the hub has errors of its own
        raise DataNotFoundError(
            f"network {network}: no such folder, and no {' or '.join(names)} of it in the cache "
            f"or on the hub ({type(error).__name__}: {first_line(error)}); check the name and the "
            "connection"
        ) from error


def hf_checkpoint(network: str, checkpoint: Checkpoint) -> Checkpoint:
    """The weights of a folder, under the names of the network, as transformers converts them.

    Raises:
        InputError: weights are missing, or have other shapes; else as `hf_network`.
    """
    kind: Any = type(hf_network(network, None))  # Any: a class of transformers
    try:
        built, report = kind.from_pretrained(
            None,
            config=_config(network),
            state_dict=dict(checkpoint.weights),
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises anything
        raise InputError(
            f"weights {checkpoint.path}: transformers cannot load them into {network} "
            f"({type(error).__name__}: {first_line(error)}); copy the folder again"
        ) from error
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing := sorted(str(each) for each in missing if "num_batches_tracked" not in str(each)):
        raise InputError(
            f"weights {checkpoint.path}: {len(missing)} weights of {network} are missing or have "
            f"other shapes, such as {missing[0]}; use a folder with a trained classifier"
        )
    weights: dict[str, Tensor] = built.state_dict()
    return replace(checkpoint, weights=weights)


def hf_class_names(network: str) -> tuple[str, ...]:
    """``id2label`` of the configuration; empty if it only numbers the classes."""
    labels: dict[int, str] = _config(network).id2label
    names = tuple(labels[number] for number in sorted(labels))
    is_named = any(name != f"LABEL_{number}" for number, name in enumerate(names))
    return names if is_named and len(set(names)) == len(names) else ()


def hf_preprocessing(network: str) -> tuple[Resize, Normalisation]:
    """How the image processor of a folder prepares images, with transformers' PIL backend.

    Its options mean something else in each class, so candidates are compared with the pixels that
    it returns.

    Raises:
        DataNotFoundError: there is no ``preprocessor_config.json``.
        InputError: it pads, changes the order of channels, or does something else that is not
            supported.
    """
    file, transformers = hf_file(network, PROCESSOR), _transformers(network)
    check_config(file, network)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(file.parent), local_files_only=True, trust_remote_code=False, backend="pil"
        )
        process = partial(processor, return_tensors="np")
        images = [_noise(*size) for size in _SIZES]
        theirs = [process(images=image)["pixel_values"][0].transpose(1, 2, 0) for image in images]
    except Exception as error:  # transformers raises anything
        raise InputError(
            f"network {network}: transformers cannot use its {PROCESSOR} "
            f"({type(error).__name__}: {first_line(error)}); correct it, or remove it and give "
            "--resize, --image-size, --mean and --std"
        ) from error
    normalisation = _normalisation(processor)
    for resizing in _candidates(processor, theirs[0].shape[:2]):
        ours = [_prepared(resizing, normalisation, image) for image in images]
        if all(map(_are_equal, ours, theirs)):
            return resizing, normalisation
    raise InputError(
        f"network {network}: its {type(processor).__name__} prepares images in a way that is not "
        "supported, expected resize, centre crop and normalisation of RGB; load the network in a "
        "file of your own, file.py:factory, which changes its input"
    )


def _candidates(processor: Any, size: tuple[int, int]) -> Iterator[Resize]:  # Any: transformers'
    """Resizes with an output of ``size`` pixels that the options of a processor may mean."""
    names = {int(Image.Resampling[name.upper()]): name for name in INTERPOLATIONS}
    filter_name, given = names[int(processor.resample)], processor.size
    sides: list[int | tuple[int, int]] = [size]
    if given.get("height") and given.get("width"):
        sides.append((given["height"], given["width"]))
    if shortest := given.get("shortest_edge"):
        ratio = getattr(processor, "crop_pct", None) or 1
        # LeViT's class resizes to 256 pixels for each 224.
        sides += [shortest, int(shortest / ratio), int(shortest * 256 / 224)]
    for side in sides:
        if min(side if isinstance(side, tuple) else (side,)) >= min(size):
            yield Resize(size, side, filter_name)


def _normalisation(processor: Any) -> Normalisation:  # Any: transformers'
    if not getattr(processor, "do_normalize", False):
        return Normalisation((0.0,) * 3, (1.0,) * 3)
    return Normalisation(tuple(processor.image_mean), tuple(processor.image_std))


def _noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def _prepared(resizing: Resize, normalisation: Normalisation, image: Image.Image) -> Any:
    pixels = resizing.pixels(image) / 255
    return (pixels - np.array(normalisation.mean)) / np.array(normalisation.std)


def _are_equal(ours: Any, theirs: Any) -> bool:  # Any: arrays [H, W, 3]
    """Whether no pixel differs; rounding is far below a level of grey."""
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() < 1e-3)


def _config(network: str) -> Any:  # Any: a class of transformers
    file = hf_file(network, CONFIG)
    check_config(file, network)
    try:
        return _transformers(network).AutoConfig.from_pretrained(
            str(file.parent), local_files_only=True, trust_remote_code=False
        )
    except InputError:
        raise
    except Exception as error:  # transformers raises anything
        raise InputError(
            f"network {network}: transformers cannot use its {CONFIG} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _transformers(network: str) -> Any:  # Any: transformers' functions have types of their own
    define_missing_operators()
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"network {network!r} needs transformers, which cannot be imported ({error}); install "
            "it: pip install 'intro-pipe[transformers]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
