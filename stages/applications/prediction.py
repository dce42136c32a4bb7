"""Predictions of f and H for image files, read and resized as extraction reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stages.applications.introspective import Introspective
from stages.data.folder import SUFFIXES, FolderReader
from stages.errors import DataNotFoundError
from stages.reflection.losses import softmax
from store.disk import spelled_out

OK = "ok"


def images_in(places: Sequence[str | Path]) -> list[Path]:
    """The files that were named, and the image files in and below the folders that were.

    Files of a folder are sorted by path; hidden ones and those that are no image by their name are
    left out.

    Raises:
        DataNotFoundError: nothing is there, or a folder has no image.
    """
    return [file for place in places for file in _files_at(spelled_out(place))]


def predict(
    introspective: Introspective,
    files: Sequence[Path],
    *,
    batch_rows: int = 128,
    tick: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Label and confidence of f and of H for each file.

    Returns:
        A row for each file, in their order: ``image``, ``f_label``, ``f_confidence``, ``H_label``,
        ``H_confidence`` and ``status``, which is "ok" or says why the file could not be read; the
        labels are then None and the confidences NaN.
    """
    parts = []
    for start in range(0, len(files), batch_rows):
        parts.append(_rows_of(introspective, files[start : start + batch_rows]))
        tick(len(parts[-1]))
    return pd.concat(parts, ignore_index=True)


def _files_at(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        if not place.exists():
            raise DataNotFoundError(f"{place}: there is no such image or folder")
        yield place
        return
    found = [path for path in sorted(place.rglob("*")) if _is_shown_image(path, place)]
    if not found:
        raise DataNotFoundError(f"{place}: holds no images, expected {', '.join(SUFFIXES)}")
    yield from found


def _is_shown_image(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not is_hidden and not path.is_dir()


@torch.inference_mode()
def _rows_of(introspective: Introspective, files: Sequence[Path]) -> pd.DataFrame:
    size = introspective.card.image_size
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    names = tuple(str(file.absolute().relative_to(root)) for file in files)
    read = FolderReader(root, names, (0,) * len(names)).read(0, len(names), (size, size))
    device = introspective.sensing.mean.device
    of_f, of_h = introspective(torch.from_numpy(read.images).to(device))
    columns: dict[str, object] = {"image": [str(file) for file in files]}
    for name, logits in (("f", of_f), ("H", of_h)):
        labels, confidences = _answers(introspective, logits.cpu().numpy())
        for row in read.failed:
            labels[row], confidences[row] = None, np.nan
        columns |= {f"{name}_label": labels, f"{name}_confidence": confidences}
    # The reader puts a file's name before the reason; here it has a column of its own.
    reasons = {row: why.removeprefix(f"{names[row]}: ") for row, why in read.failed.items()}
    status = [reasons.get(row, OK) for row in range(len(files))]
    return pd.DataFrame({**columns, "status": status})


def _answers(
    introspective: Introspective, logits: NDArray[np.float32]
) -> tuple[list[str | None], NDArray[np.float64]]:
    probabilities = softmax(logits.astype(np.float64))
    names = introspective.card.class_names or tuple(map(str, range(probabilities.shape[1])))
    labels: list[str | None] = [names[label] for label in probabilities.argmax(axis=1)]
    return labels, probabilities.max(axis=1)
