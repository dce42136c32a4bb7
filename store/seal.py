"""Checksums of files, kept in JSON files that carry a checksum of their own (the seal)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from store.plan import canonical_json, read_object, readable_json
from store.storage import checksum, leads_out

SEAL = "seal_sha256"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size of a file in bytes, and its SHA-256, hex."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The digest of a file's content."""
        return cls(len(data), checksum(data))

    def to_json(self) -> dict[str, Any]:
        """The digest as receipts and cards store it."""
        return {"bytes": self.n_bytes, "sha256": self.sha256}


def vouch(data: bytes) -> dict[str, Any]:
    """Size and checksum of a file, as stored in receipts and cards."""
    return FileDigest.of(data).to_json()


def sealed(facts: Mapping[str, Any]) -> bytes:
    """Readable JSON of the facts and the SHA-256 of their canonical form."""
    return readable_json({**facts, SEAL: checksum(canonical_json(facts))})


def unsealed(data: bytes) -> dict[str, Any]:
    """Parse what ``sealed`` wrote; raises ``ValueError`` if any byte was changed."""
    facts = read_object(data)
    if facts.pop(SEAL, None) is None or data != sealed(facts):
        raise ValueError("it was altered")
    return facts


def digests_in(files: object) -> dict[str, FileDigest]:
    """The digests that a receipt or card stores by key; raises ``ValueError`` for anything else.

    A seal is not a signature: the author of a file may have sealed anything.
    """
    if not isinstance(files, dict) or not all(_is_vouched(each) for each in files.values()):
        raise ValueError("expected the size and the sha256 of each file")
    if astray := [key for key in files if leads_out(key)]:
        raise ValueError(f"{astray[0]!r} leads out of the folder")
    return {key: FileDigest(each["bytes"], each["sha256"]) for key, each in files.items()}


def size_mismatch(files: Mapping[str, FileDigest], size_of: Callable[[str], int | None]) -> str:
    """The first file that is missing or has another size, in words; empty if there is none."""
    for key, expected in files.items():
        if (size := size_of(key)) != expected.n_bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            return f"{key} {found}, expected {expected.n_bytes:,} bytes"
    return ""


def _is_vouched(facts: Any) -> bool:  # Any: whatever JSON can hold
    is_whole = isinstance(facts, dict) and facts.keys() == {"bytes", "sha256"}
    return is_whole and type(facts["bytes"]) is int and isinstance(facts["sha256"], str)
