"""The photographs of frost from the package ``imagecorruptions``."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataNotFoundError

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The five photographs that CIFAR-10-C uses; the sixth one of the package is never used."""


def frost_folder() -> Path:
    """Folder of the photographs; cheap, so that a run can check before it starts.

    The package is found without importing it, because importing it would load numba.

    Raises:
        DataNotFoundError: the package is not installed, or a photograph is missing.
    """
    remedy = "install them with: pip install --no-deps imagecorruptions-imaug"
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        raise DataNotFoundError(
            "corruption 'frost' needs the photographs of the package imagecorruptions, "
            f"which is not installed; {remedy}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    for name in FILES:
        if not (folder / name).is_file():
            raise DataNotFoundError(
                f"corruption 'frost' needs {folder / name}: no such file; {remedy}"
            )
    return folder


@lru_cache(maxsize=1)
def frost_photographs() -> tuple[NDArray[np.uint8], ...]:
    """The five photographs at a fifth of their size, ``uint8 [h, w, 3]`` RGB; read once.

    Raises:
        DataNotFoundError: as ``frost_folder``, or a file is not an image.
    """
    import cv2

    folder = frost_folder()
    photographs = []
    for name in FILES:
        photograph = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        if photograph is None:
            raise DataNotFoundError(f"frost photograph {folder / name}: not an image; reinstall it")
        photographs.append(cv2.resize(photograph, (0, 0), fx=0.2, fy=0.2)[..., ::-1])
    return tuple(photographs)
