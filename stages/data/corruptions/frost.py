"""The photographs of frost from the package ``imagecorruptions``."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataNotFoundError

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The five photographs that CIFAR-10-C and ImageNet-C use; they never use the sixth one."""


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
def frost_photographs(scale: float, size: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """The five photographs, ``uint8 [h, w, 3]`` RGB, larger than ``size``; read once.

    Args:
        scale: factor by which they are resized.
        size: ``(H, W)`` that random crops of them have; smaller photographs are enlarged.

    Raises:
        DataNotFoundError: as ``frost_folder``, or a file is not an image.
    """
    folder = frost_folder()
    return tuple(_resized(_photograph(folder / name), scale, size) for name in FILES)


def _photograph(path: Path) -> NDArray[np.uint8]:
    """A photograph in BGR."""
    import cv2

    photograph = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if photograph is None:
        raise DataNotFoundError(f"frost photograph {path}: not an image; reinstall it")
    return np.asarray(photograph, np.uint8)


def _resized(
    photograph: NDArray[np.uint8], scale: float, size: tuple[int, int]
) -> NDArray[np.uint8]:
    import cv2

    least = max((side + 1) / length for side, length in zip(size, photograph.shape, strict=False))
    scale = max(scale, least)
    resized = photograph if scale == 1 else cv2.resize(photograph, (0, 0), fx=scale, fy=scale)
    return np.ascontiguousarray(resized[..., ::-1])
