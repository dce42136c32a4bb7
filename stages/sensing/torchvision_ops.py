"""Import torchvision on a CPU build of torch, defining operators that its library cannot load."""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_kept: list[Any] = []  # Any: torch.library.Library; its definitions live as long as the object


def import_torchvision() -> ModuleType:
    """Import torchvision on any build of torch, if necessary without its C++ operators.

    The wheel on PyPI links to CUDA. On a CPU build of torch its library fails to load, and the
    import then fails because ``torchvision::nms`` is unknown. Defining the operator is enough for
    data sets, transforms and classifiers, which never call it. If the operators can be loaded,
    nothing is changed.

    Raises:
        ImportError: torchvision is not installed.
    """
    define_missing_operators()
    return importlib.import_module("torchvision")


@cache
def define_missing_operators() -> None:
    """Make torchvision importable on any build of torch; nothing changes if it is already.

    See `import_torchvision`. Nothing happens if torchvision is not installed.
    """
    if _load_operators():
        return
    from torch.library import Library

    library = Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # torch gives no types
    for schema in _MISSING_SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]  # the same
    _kept.append(library)


def _load_operators() -> bool:
    """Load torchvision's C++ operators, and return whether torch knows them."""
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return True
    for path in _extension_files():
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # the same
        except OSError:
            continue
        return hasattr(torch.ops.torchvision, "nms")
    return False


def _extension_files() -> list[Path]:
    # find_spec locates a top-level package without running it.
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [
        path
        for folder in folders
        for path in sorted(Path(folder).glob("_C*"))
        if path.suffix in {".so", ".pyd", ".dylib"}
    ]
