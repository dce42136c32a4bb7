"""What vouches for files: their sizes and checksums, in JSON that is sealed by one of its own."""

from collections.abc import Mapping
from typing import Any

from store.plan import canonical_json, read_object, readable_json
from store.storage import checksum, leads_out

SEAL = "seal_sha256"


def vouch(data: bytes) -> dict[str, Any]:
    """Size and checksum of a file, as receipts and cards keep them."""
    return {"bytes": len(data), "sha256": checksum(data)}


def sealed(facts: Mapping[str, Any]) -> bytes:
    """The facts as readable JSON, with the SHA-256 of their canonical form."""
    return readable_json({**facts, SEAL: checksum(canonical_json(facts))})


def unsealed(data: bytes) -> dict[str, Any]:
    """The facts; raises ``ValueError`` where not every byte is as ``sealed`` wrote it."""
    facts = read_object(data)
    if facts.pop(SEAL, None) is None or data != sealed(facts):
        raise ValueError("it was altered")
    return facts


def check_vouched(files: object) -> None:
    """Raise ``ValueError`` where this is not what ``vouch`` gives of files, by key.

    A seal is no signature: whoever has written the file may have sealed anything.
    """
    if not isinstance(files, dict) or not all(_is_vouched(each) for each in files.values()):
        raise ValueError("expected the size and the sha256 of each file")
    if astray := [key for key in files if leads_out(key)]:
        raise ValueError(f"{astray[0]!r} leads out of the folder")


def _is_vouched(facts: Any) -> bool:  # Any: whatever JSON can hold
    is_whole = isinstance(facts, dict) and facts.keys() == {"bytes", "sha256"}
    return is_whole and type(facts["bytes"]) is int and isinstance(facts["sha256"], str)
