"""The samples that a training is limited to, from a file."""

import hashlib
import json
from pathlib import Path

from stages.csv_text import cells_of
from stages.errors import InputError


def read_samples(file: str | None) -> frozenset[str] | None:
    """Ids of the samples in a CSV file with a column ``sample_id``; ``None`` without a file.

    Raises ``InputError`` if the file has none.
    """
    if file is None:
        return None
    cells = cells_of(Path(file), ["sample_id"])
    if not (found := frozenset(sample_id for _, (sample_id,) in cells)):
        raise InputError(f"--samples {file}: expected at least one sample, found none")
    return found


def samples_hash(samples: frozenset[str]) -> str:
    """SHA-256 of the sorted ids, hex."""
    return hashlib.sha256(json.dumps(sorted(samples)).encode()).hexdigest()
