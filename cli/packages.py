"""Import our ``store``, ``pipeline``, ``stages`` and ``cli`` before any others of these names.

The names are generic. A ``store.py`` in the current directory (``python -m cli.app``) or on
``PYTHONPATH`` comes before ours on ``sys.path``. So this module imports the four packages from its
own location first; Python does not search again for a package that is already imported.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli
import pipeline
import stages
import store

sys.path.pop(0)

__all__ = ["cli", "pipeline", "stages", "store"]
