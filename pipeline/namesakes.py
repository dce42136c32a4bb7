"""Detect other modules with the same, generic names as our packages."""

from pathlib import Path

OURS = frozenset(("cli", "pipeline", "stages", "store"))
ROOT = Path(__file__).resolve().parents[1]
"""Folder that contains our packages."""


def namesakes_in(folder: Path) -> list[str]:
    """Names of our packages that are also modules or folders in ``folder``; none in ``ROOT``."""
    if folder.resolve() == ROOT:
        return []
    return [
        name
        for name in sorted(OURS)
        if (folder / name).is_dir() or (folder / f"{name}.py").is_file()
    ]
