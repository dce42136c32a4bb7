"""Isolation of our own Ray cluster from folders that other users may write to."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from pipeline.namesakes import ROOT, namesakes_in

NEUTRAL = Path(os.__file__).parent
"""Folder of Python's standard library, from which workers import in any case."""

_VARIABLES = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONOPTIMIZE")

MAX_BASE_BYTES = 28
"""Ray appends up to 78 bytes for its sockets, whose paths are limited to 107 (103 on macOS)."""


@contextmanager
def private_folder() -> Iterator[str]:
    """A folder for Ray's sockets, logs and spilled objects that only this user may enter.

    It is created in ``$RAY_TMPDIR`` or ``$TMPDIR``, or in ``/tmp`` if their path is long or not
    ASCII, and removed afterwards. Ray's own default, ``/tmp/ray``, is open to every user.
    """
    base = str(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute())
    fits = base.isascii() and len(base) <= MAX_BASE_BYTES
    folder = tempfile.mkdtemp(prefix="ray-", dir=base if fits else "/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def neutral_folder() -> Iterator[None]:
    """Hide the working directory and the script's folder from Ray while it connects.

    Ray puts both at the front of its workers' ``sys.path``, so that pandas, for example, would
    import a ``bottleneck.py`` that happens to be there. ``PYTHONPATH`` was set by the user and is
    kept: its relative entries are made absolute, and our packages precede others with the same
    names.

    Variables that turn warnings into errors, or drop docstrings, are hidden too, because Ray's own
    processes would fail.
    """
    script = sys.argv[:1]
    before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    if "PYTHONPATH" in before:
        os.environ["PYTHONPATH"] = os.pathsep.join(_import_folders(before["PYTHONPATH"]))
    sys.argv[:1] = [str(NEUTRAL / "intro-pipe")]
    try:
        with chdir(NEUTRAL):
            yield
    finally:
        sys.argv[:1] = script
        os.environ.update(before)


def _import_folders(path: str) -> list[str]:
    folders = [Path(entry).absolute() for entry in path.split(os.pathsep) if entry]
    if any(namesakes_in(folder) for folder in folders):
        folders.insert(0, ROOT)
    return list(map(str, folders))
