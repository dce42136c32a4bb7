"""What vouches for files: their sizes and checksums, in JSON that is sealed by one of its own."""

import json
from collections.abc import Mapping
from typing import Any

from store.plan import canonical_json, readable_json
from store.storage import checksum

SEAL = "seal_sha256"


def vouch(data: bytes) -> dict[str, Any]:
    """Size and checksum of a file, as receipts and cards keep them."""
    return {"bytes": len(data), "sha256": checksum(data)}


def sealed(facts: Mapping[str, Any]) -> bytes:
    """The facts as readable JSON, with the SHA-256 of their canonical form."""
    return readable_json({**facts, SEAL: checksum(canonical_json(facts))})


def unsealed(data: bytes) -> dict[str, Any]:
    """The facts; raises ``ValueError`` where not every byte is as ``sealed`` wrote it."""
    facts = json.loads(data)
    if not isinstance(facts, dict) or facts.pop(SEAL, None) is None or data != sealed(facts):
        raise ValueError("it was altered")
    return facts
