"""Receipts: the record of a finished shard."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from store.plan import readable_json
from store.seal import FileDigest, digests_in, sealed, unsealed
from store.shards import Shard

BESIDE = "beside"
"""Fact of a receipt: digests of fixed files that are needed to read its rows."""

FAILED = "failed"
"""Fact of a receipt: row of the set, a string -> why its sample could not be computed."""

INPUTS = "inputs"
"""Fact of a receipt: checksums of other files of the store that the rows were computed from."""

_OWN = ("plan", "shard", "files")
"""Entries of a receipt that the store writes; the others are facts of the stage."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was written for a shard, and with which plan.

    Attributes:
        plan: fingerprint of the plan.
        shard: the rows; ``None`` if the file does not say which in our format.
        files: key -> digest of the file.
        facts: everything else, as JSON: facts of the stage, the host, the time.
    """

    plan: str
    shard: Shard | None
    files: Mapping[str, FileDigest]
    facts: Mapping[str, Any]  # Any: JSON

    @classmethod
    def of(
        cls, plan: str, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> Self:
        """The receipt as it will be read; raises ``TypeError`` if facts are not JSON."""
        plain: dict[str, Any] = json.loads(readable_json(facts))
        digests = {key: FileDigest.of(data) for key, data in files.items()}
        return cls(plan, shard, digests, _without_own(plain))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a receipt; raises ``ValueError`` if it was altered or is not in our format."""
        found = unsealed(data)
        failed = found.get(FAILED, {})
        if not isinstance(failed, dict) or not all(row.isdecimal() for row in failed):
            raise ValueError("expected the failed rows by number")
        digests_in(found.get(BESIDE, {}))
        files = digests_in(found.get("files"))
        shard = _shard_in(found.get("shard"))
        return cls(str(found.get("plan")), shard, files, _without_own(found))

    def to_json(self) -> bytes:
        """The content of the receipt's file, sealed."""
        shard = self.shard and {
            "index": self.shard.index,
            "start": self.shard.start,
            "stop": self.shard.stop,
        }
        files = {key: digest.to_json() for key, digest in self.files.items()}
        return sealed({"plan": self.plan, "shard": shard, "files": files, **self.facts})

    @property
    def failed(self) -> dict[int, str]:
        """Row of the set -> why its sample could not be computed."""
        return {int(row): str(why) for row, why in self.facts.get(FAILED, {}).items()}

    @property
    def inputs(self) -> Any:  # Any: JSON
        """What the shard was computed from, of stages that recompute it when that changes."""
        return self.facts.get(INPUTS)

    @property
    def beside(self) -> dict[str, FileDigest]:
        """Digests of fixed files that are needed to read the rows."""
        return digests_in(self.facts.get(BESIDE, {}))


def _without_own(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key not in _OWN}


def _shard_in(value: Any) -> Shard | None:  # Any: whatever JSON can hold
    try:
        return Shard(**value)
    except (TypeError, ValueError):
        return None
