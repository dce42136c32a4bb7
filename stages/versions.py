"""The versions that results record."""

import platform
from importlib.metadata import version

import numpy as np
import torch


def versions() -> dict[str, str]:
    """Versions of everything on which numbers depend."""
    return {
        "intro-pipe": version("intro-pipe"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
