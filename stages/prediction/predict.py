"""Predictions of f and H for image files, resized like the training images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.terminal import printable_line
from stages.data.class_names import numbers
from stages.data.folder import FolderReader
from stages.data.listing import LeftOut, expected_images, images_below, shown, tally
from stages.data.regular import refused
from stages.data.resize import Resize, native_size, resize_of
from stages.data.source import ReaderSource
from stages.data.stored_sizes import sizes_of
from stages.errors import DataNotFoundError
from stages.metrics.finite import why_not_finite
from stages.prediction.introspective import Introspective
from stages.reflection.losses import softmax
from stages.sensing.device import full_float32
from stages.sensing.probe import sample_images
from store.disk import spelled_out

OK = "ok"


def images_in(places: Sequence[str | Path]) -> tuple[list[Path], tuple[LeftOut, ...]]:
    """The named files, and all image files below the named folders, sorted by path.

    The second result counts everything else in the folders.

    Raises:
        DataNotFoundError: a path does not exist, or a folder has no image.
        InputError: a folder cannot be listed.
    """
    files: list[Path] = []
    left_out: list[tuple[str, str]] = []
    for place in map(spelled_out, places):
        found, others = _files_at(place)
        files += found
        left_out += others
    return files, tally(left_out)


def sample_of(files: Sequence[Path], size: int) -> Tensor:
    """A few of the images, evenly spaced, as ``predict`` passes them to a network."""
    reader, n_rows = _reader(files), len(files)
    return sample_images(
        ReaderSource("images", "test", "", (), Resize((size, size)), None, n_rows, reader)
    )


def predict(
    introspective: Introspective,
    files: Sequence[Path],
    *,
    batch_rows: int = 128,
    tick: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Label and confidence of f and of H for each file.

    Returns:
        One row per file, in the same order: ``image``, ``f_label``, ``f_confidence``, with a head
        ``H_label`` and ``H_confidence`` (``T_`` for a temperature, ``L_`` for a Laplace
        approximation), and ``status``, which is "ok" or the reason why there is no prediction: the
        file could not be read, or logits are not finite. Then the labels are None and the
        confidences NaN.
    """
    parts = []
    for start in range(0, len(files), batch_rows):
        parts.append(_rows_of(introspective, files[start : start + batch_rows]))
        tick(len(parts[-1]))
    return pd.concat(parts, ignore_index=True)


def resizing(introspective: Introspective, files: Sequence[Path]) -> str:
    """A note if files are resized differently from the training images.

    Empty if they are resized by the same rule. Images of a data set in arrays had one size: a
    file of another size is cropped, or stretched for a model of an older version.
    """
    card, rule, last = introspective.card, introspective.resize, introspective.last
    size = card.image_size
    wanted = None if rule is None else native_size(rule, (size, size))
    if wanted is None and (card.resizing or rule is not None):
        return ""  # each file is stretched or cropped like the training images
    sizes = sizes_of(files)
    if wanted is not None:
        n_other = sum(n for found, n in sizes.items() if found != wanted)
        what = f"are not {wanted[0]}x{wanted[1]}, as the training images of {last}"
    else:
        n_other = sum(n for (height, width), n in sizes.items() if height != width)
        what = f"are not square, and the resize rule of {last} is not known"
    if not n_other:
        return ""
    how = "cropped" if card.input.crops else "stretched"
    return f"{n_other:,} of {len(files):,} images {what}: they are {how} to {size}x{size}"


def _files_at(place: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The images of one file or folder, and ``(reason, path)`` of everything that is left out."""
    with refused(place):
        if not os.path.lexists(place):
            raise DataNotFoundError(f"{place}: no such image or folder")
        if not place.is_dir():
            return [place], []
    images, others = images_below(place)
    left_out = [(reason, f"{place}/{entry}") for reason, entry in others]
    if not images:
        raise DataNotFoundError(f"{place}: has no images, {expected_images('files', left_out)}")
    return sorted(place / image for image in images), left_out


@full_float32()
@torch.inference_mode()
def _rows_of(introspective: Introspective, files: Sequence[Path]) -> pd.DataFrame:
    reader = _reader(files)
    names = reader.files
    read = reader.read(0, len(names), _resizing(introspective))
    device = introspective.sensing.mean.device
    found = introspective(torch.from_numpy(read.images).to(device))
    columns: dict[str, object] = {"image": [_name_of(file) for file in files]}
    # The reader prefixes the reason with the file's name, which has its own column here.
    unread = {
        row: why.removeprefix(f"{printable_line(names[row])}: ") for row, why in read.failed.items()
    }
    reasons: dict[int, str] = {}
    predictors = (("f", "network"), (introspective.label, "head"))
    for (name, of), logits in zip(predictors, found, strict=False):
        answers = logits.cpu().numpy()
        failed = why_not_finite({"logits": answers}, of) | unread
        labels, confidences = _answers(introspective, answers, failed)
        columns |= {f"{name}_label": labels, f"{name}_confidence": confidences}
        reasons = failed | reasons
    status = [reasons.get(row, OK) for row in range(len(files))]
    return pd.DataFrame({**columns, "status": status})


def _name_of(file: Path) -> str:
    """The path of a file; if it is not UTF-8, with escaped bytes."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return shown(str(file))
    return str(file)


def _resizing(introspective: Introspective) -> Resize:
    """How the training images were resized."""
    size = introspective.card.image_size
    trained = resize_of(introspective.resize or "none", (size, size))
    known = introspective.card.resizing
    return replace(known, decoding=trained.decoding) if known else trained


def _reader(files: Sequence[Path]) -> FolderReader:
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    names = tuple(str(file.absolute().relative_to(root)) for file in files)
    return FolderReader(root, names, (0,) * len(names))


def _answers(
    introspective: Introspective, logits: NDArray[np.float32], failed: Collection[int]
) -> tuple[list[str | None], NDArray[np.float64]]:
    """Label and confidence of each row; None and NaN for those that failed."""
    finite = logits.astype(np.float64)
    finite[list(failed)] = 0
    probabilities = softmax(finite)
    names = introspective.card.class_names or numbers(probabilities.shape[1])
    labels: list[str | None] = [names[label] for label in probabilities.argmax(axis=1)]
    confidences = probabilities.max(axis=1)
    for row in failed:
        labels[row], confidences[row] = None, np.nan
    return labels, confidences
