"""Read and write the weights of UNIQUE's autoencoder: safetensors, and the authors' MATLAB file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stages.data.arrays import check_memory
from stages.data.regular import refused, require_regular
from stages.errors import DataNotFoundError, InputError
from stages.quality.autoencoder import N_HIDDEN, NAMES, Autoencoder
from stages.quality.matlab import read_arrays
from stages.quality.patches import PATCH_VALUES, Floats

WEIGHTS_KEY = "weights.safetensors"
"""File of a quality model in the store."""

MOST_WEIGHT = 1e6
"""Largest weight, far above those of training, with which no score overflows."""

_THETA = 2 * N_HIDDEN * PATCH_VALUES + N_HIDDEN + PATCH_VALUES


def encoded(model: Autoencoder) -> bytes:
    """The weights as a safetensors file."""
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(each) for name, each in model.arrays().items()}))


def decoded_weights(data: bytes, where: str) -> Autoencoder:
    """The autoencoder of a safetensors file with `w1`, `b1`, `w2` and `b2`.

    Raises:
        InputError: the file is damaged, or an array is missing or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except KeyError as error:
        raise InputError(
            f"{where}: has values of type {error.args[0]}, expected F32 or F64"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{where}: not a complete safetensors file ({error})") from error
    return _checked(arrays, where)


def read_weights(path: str | Path) -> Autoencoder:
    """The autoencoder of a safetensors file, or of a MATLAB file of UNIQUE's authors.

    Of a MATLAB file only the numeric vector ``optTheta`` is read, which holds all weights:
    ``w1 [400, 192]`` and ``w2 [192, 400]`` in column-major order, then ``b1`` and ``b2``. No code
    of the file runs (`read_arrays`).

    Raises:
        DataNotFoundError: no such file.
        InputError: the file is damaged, or has other contents or shapes.
    """
    path = Path(path)
    if not path.exists():
        raise DataNotFoundError(f"weights {path}: no such file; check the path")
    with refused(path):
        require_regular(path)
        if path.suffix.lower() == ".mat":
            return _from_theta(_theta_in(path), f"weights {path}")
        check_memory(path.stat().st_size, path)
        return decoded_weights(path.read_bytes(), f"weights {path}")


def content_of(model: Autoencoder) -> str:
    """Hash of the weights, hex; the same for both kinds of files."""
    digest = hashlib.sha256()
    for name, values in model.arrays().items():
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values, "<f8").tobytes())
    return digest.hexdigest()


def _theta_in(path: Path) -> Floats:
    theta = np.asarray(read_arrays(path, ("optTheta",))["optTheta"])
    if sorted(theta.shape) != [1, _THETA] or theta.dtype.kind not in "fiu":
        raise InputError(
            f"weights {path}: optTheta is {list(theta.shape)} {theta.dtype}, expected a vector of "
            f"{_THETA:,} numbers"
        )
    return theta.astype(np.float64).ravel()


def _from_theta(theta: Floats, where: str) -> Autoencoder:
    n = N_HIDDEN * PATCH_VALUES
    w1 = theta[:n].reshape(N_HIDDEN, PATCH_VALUES, order="F")
    w2 = theta[n : 2 * n].reshape(PATCH_VALUES, N_HIDDEN, order="F")
    b1, b2 = np.split(theta[2 * n :], [N_HIDDEN])
    return _checked(dict(zip(NAMES, (w1, b1, w2, b2), strict=True)), where)


def _checked(arrays: dict[str, np.ndarray], where: str) -> Autoencoder:
    """The arrays as an autoencoder; raises ``InputError``."""
    if missing := [name for name in NAMES if name not in arrays]:
        raise InputError(
            f"{where}: expected arrays {', '.join(NAMES)}, found none called {missing[0]}"
        )
    n_hidden = arrays["w1"].shape[0] if arrays["w1"].ndim else 0
    shapes = {
        "w1": (n_hidden, PATCH_VALUES),
        "b1": (n_hidden,),
        "w2": (PATCH_VALUES, n_hidden),
        "b2": (PATCH_VALUES,),
    }
    for name, shape in shapes.items():
        found = arrays[name]
        if found.shape != shape or found.dtype.kind != "f" or n_hidden == 0:
            raise InputError(
                f"{where}: {name} is {list(found.shape)} {found.dtype}, expected "
                f"{list(shape) if n_hidden else '[hidden units, 192]'} floats"
            )
        if not (np.abs(found) <= MOST_WEIGHT).all():  # NaN included
            raise InputError(
                f"{where}: {name} has values that are not finite or exceed {MOST_WEIGHT:,.0f}, "
                "expected weights of a trained autoencoder"
            )
    return Autoencoder(*(arrays[name].astype(np.float64) for name in NAMES))
