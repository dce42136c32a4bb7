"""Sealed JSON: an object that carries a checksum of itself, for what vouches for other files."""

import json
from collections.abc import Mapping
from typing import Any

from store.plan import canonical_json, readable_json
from store.storage import crc32c

SEAL = "seal_crc32c"


def sealed(facts: Mapping[str, Any]) -> bytes:
    """The facts as readable JSON, with the CRC-32C of their canonical form."""
    return readable_json({**facts, SEAL: crc32c(canonical_json(facts))})


def unsealed(data: bytes) -> dict[str, Any]:
    """The facts; raises ``ValueError`` where not every byte is as ``sealed`` wrote it."""
    facts = json.loads(data)
    if not isinstance(facts, dict) or facts.pop(SEAL, None) is None or data != sealed(facts):
        raise ValueError("it was altered")
    return facts
