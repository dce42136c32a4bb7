"""Artifacts: folders of files other than sets of shards; the card is written last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.errors import ArtifactNotFoundError, DamagedError, NotFoundError, PlanMismatchError
from store.lease import LEASES, Lease, holder_of
from store.locations import storage_at
from store.machine import Machine
from store.plan import Plan, differences, fingerprint, read_object, readable_json
from store.seal import FileDigest, digests_in, sealed, unsealed, vouch
from store.shardset import PLAN_KEY
from store.storage import Storage
from store.tables import read_frame

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINTS = "checkpoints"
"""Folder with the checkpoints from which an unfinished artifact is resumed."""

FAILED_KEY = "failed.json"
"""File that records which plan cannot be finished, and why; another plan may then be used here."""


@dataclass(frozen=True, slots=True)
class StagedArtifact:
    """Files that are written but not published: key -> staged name, including the card."""

    names: Mapping[str, str]
    card: dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Artifact:
    """A folder with ``plan.json``, data files and a card, ``<kind>.json``, that is written last.

    ``kind`` names its folder in the store and its card; the store attaches no meaning to it.
    """

    storage: Storage
    kind: str

    @property
    def card_key(self) -> str:
        """Key of the card."""
        return f"{self.kind}.json"

    @property
    def name(self) -> str:
        """Name of the artifact: the last part of its location."""
        return self.storage.location.rstrip("/").rsplit("/", 1)[-1]

    def is_complete(self) -> bool:
        """Whether the card exists."""
        return self.storage.size(self.card_key) is not None

    def is_settled(self) -> bool:
        """Whether the card exists and is durable; call it before reporting the artifact as done.

        The process that wrote the card may have crashed before syncing its folder.
        """
        if not self.is_complete():
            return False
        self.storage.sync()
        return True

    def claim(self, plan: Plan) -> None:
        """Write the plan before the work starts.

        Raises ``PlanMismatchError`` if the folder holds another plan, unless the run of that plan
        left nothing to resume or failed permanently; then the plan is replaced.
        """
        if self.storage.create(PLAN_KEY, readable_json(plan)) or self.holds(plan):
            return
        self._replace(plan)

    def holds(self, plan: Plan) -> bool:
        """Whether the folder holds this plan; raises ``PlanMismatchError`` if it holds another.

        Another plan does not count if no driver is running it, and it left nothing to resume or
        failed permanently.
        """
        if self.storage.size(PLAN_KEY) is None:
            return False
        if different := list(differences(plan, self.plan())):
            if self._is_abandoned():
                return False
            done = "made" if self.is_complete() else "started"
            raise PlanMismatchError(
                f"{self.kind} '{self.name}' was {done} with another plan ({'; '.join(different)}): "
                f"give this one another name, or remove {self.storage.location}"
            )
        return True

    def mark_failed(self, plan: Plan, reason: str) -> None:
        """Record that this plan cannot be finished. The caller must hold the lease."""
        self.storage.write(FAILED_KEY, sealed({"plan": fingerprint(plan), "reason": reason}))

    def _is_abandoned(self) -> bool:
        # A folder that was claimed but never leased may belong to a driver that is just starting.
        was_leased = next(self.storage.keys(LEASES), None) is not None
        return was_leased and holder_of(self.storage) is None and self._holds_nothing()

    def _holds_nothing(self) -> bool:
        """Whether nothing is finished, and nothing could be resumed and then finished."""
        if self.is_complete():
            return False
        has_failed = self.failure() is not None
        return has_failed or next(self.storage.keys(CHECKPOINTS), None) is None

    def failure(self) -> str | None:
        """Why the current plan cannot be finished, or ``None`` if `mark_failed` recorded nothing.

        Marks of earlier plans do not count. Raises ``DamagedError`` if the plan cannot be read.
        """
        try:
            facts = unsealed(self.storage.read(FAILED_KEY))
            is_current = facts["plan"] == fingerprint(self.plan())
            return str(facts["reason"]) if is_current else None
        except (NotFoundError, ValueError, KeyError):
            return None

    def _replace(self, plan: Plan) -> None:
        """Replace an abandoned plan and remove its files."""
        with Lease(self.storage, purpose=f"replace {self.kind} {self.name}") as lease:
            if not self._holds_nothing():  # another driver has worked on it in the meantime
                self.holds(plan)
                return
            left = [
                key
                for key in self.storage.keys("")
                if key not in (PLAN_KEY, FAILED_KEY) and not key.startswith(f"{LEASES}/")
            ]
            self.storage.withdraw(left, lease.check)
            staged = self.storage.stage(PLAN_KEY, readable_json(plan))
            lease.check()
            self.storage.publish(staged, PLAN_KEY)
            self.storage.remove(FAILED_KEY)  # after the plan to which it belongs

    def plan(self) -> Plan:
        """The plan of the artifact; raises ``NotFoundError`` or ``DamagedError``."""
        return self._checked(PLAN_KEY, read_object)

    def write(
        self,
        files: Mapping[str, bytes],
        facts: Mapping[str, Any],
        *,
        plan: Plan,
        machine: Machine | None = None,
    ) -> dict[str, Any]:
        """Write the files, then the card with their checksums, and return the card.

        If another driver has finished the artifact in the meantime, its card is returned and
        nothing is written. Raises ``LeaseError`` if another driver is writing the artifact, and
        ``PlanMismatchError`` if the folder no longer holds ``plan``.
        """
        purpose = f"write {self.kind} {self.name}"
        with Lease(self.storage, purpose=purpose, machine=machine) as lease:
            self.holds(plan)  # the folder may have changed hands since `claim`
            if self.is_settled():
                return self.card()
            staged = self.stage(files, facts)
            lease.check()
            return self.publish(staged)

    def stage(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> StagedArtifact:
        """Write the files and the card to the staging area, ready to be published."""
        vouched = {key: vouch(data) for key, data in files.items()}
        plan = vouch(self.storage.read(PLAN_KEY))
        card = sealed({**facts, "plan": plan, "files": vouched})
        return StagedArtifact(
            self.storage.stage_all({**files, self.card_key: card}), unsealed(card)
        )

    def publish(self, staged: StagedArtifact) -> dict[str, Any]:
        """Publish the staged files, the card last, and return the card.

        The caller must hold the lease, and must have checked it after staging; see
        ``ShardSet.publish``.
        """
        names = dict(staged.names)
        card = names.pop(self.card_key)
        self.storage.publish_all(names)
        self.storage.publish(card, self.card_key)
        return staged.card

    def card(self) -> dict[str, Any]:
        """Read the card.

        Raises ``NotFoundError`` if the artifact is not finished or does not exist, with the names
        of those that do, and ``DamagedError`` if the card was altered.
        """
        if not self.is_complete():
            place = self.storage.location
            state = f"is not finished ({place})"
            if self.storage.size(PLAN_KEY) is None:
                existing = ", ".join(self._finished()) or "none yet"
                state = f"does not exist in {place.rpartition('/')[0]} (existing: {existing})"
            raise ArtifactNotFoundError(f"{self.kind} '{self.name}' {state}")
        return self._checked(self.card_key, _card_of)

    def _finished(self) -> list[str]:
        """Names of the finished artifacts of this kind."""
        place = storage_at(self.storage.location.rpartition("/")[0])
        return [n for n in place.folders() if place.child(n).size(self.card_key) is not None]

    def files(self) -> dict[str, FileDigest]:
        """Digests of the files of a complete artifact by key; raises as ``card`` does."""
        return digests_in(self.card()["files"])

    def read(self, key: str) -> bytes:
        """Read a file of the artifact and check it against the card; raises ``DamagedError``."""
        data = self.storage.read(key)
        if FileDigest.of(data) != self.files().get(key):
            raise DamagedError(
                f"{self.storage.location}/{key} does not match its checksum in the card; "
                "remove the folder and create it again"
            )
        return data

    def read_frame(self, key: str) -> pd.DataFrame:
        """Read a Parquet file of the artifact into a data frame; raises ``DamagedError``."""
        data = self.read(key)
        try:
            return read_frame(data)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._unreadable(key, error) from error

    def _unreadable(self, key: str, error: Exception) -> DamagedError:
        return DamagedError(
            f"{self.storage.location}/{key} cannot be read ({error}); "
            "remove the folder and create it again"
        )

    def _checked(self, key: str, decode: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        try:
            return decode(self.storage.read(key))
        except ValueError as error:
            raise self._unreadable(key, error) from error


def _card_of(data: bytes) -> dict[str, Any]:
    """Parse and check a card; raises ``ValueError``."""
    card = unsealed(data)
    digests_in(card.get("files"))
    digests_in({key: card[key] for key in ("plan",) if key in card})  # cards of 0.2 have none
    return card
