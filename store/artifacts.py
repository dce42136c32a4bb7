"""Whole artifacts: a network, a head, a result, a report. Files first, their card last."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from store.errors import DamagedError, NotFoundError, PlanMismatchError
from store.lease import Lease
from store.machine import Machine
from store.plan import Plan, differences, read_object, readable_json
from store.seal import check_vouched, sealed, unsealed, vouch
from store.shardset import PLAN_KEY
from store.storage import Storage

CHECKPOINTS = "checkpoints"
"""Folder of what an unfinished artifact goes on from."""


@dataclass(frozen=True, slots=True)
class StagedArtifact:
    """Files that are written and have no place yet: key -> staged name, the card last."""

    names: Mapping[str, str]
    card: dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Artifact:
    """A folder with ``plan.json``, data files and ``<kind>.json``, the card, written last.

    ``kind`` is one of ``store.catalog.ARTIFACT_KINDS``.
    """

    storage: Storage
    kind: str

    @property
    def card_key(self) -> str:
        """Where the card lies."""
        return f"{self.kind}.json"

    @property
    def name(self) -> str:
        """The last part of the place, which is what people call it."""
        return self.storage.location.rstrip("/").rsplit("/", 1)[-1]

    def is_complete(self) -> bool:
        """Whether the card is there."""
        return self.storage.size(self.card_key) is not None

    def is_settled(self) -> bool:
        """Whether the card is there, and will be after a power cut: for who is about to say so.

        Who wrote it may have died before that.
        """
        if not self.is_complete():
            return False
        self.storage.sync()
        return True

    def claim(self, plan: Plan) -> None:
        """Write the plan before the work starts; refuse a place that holds another one."""
        if not self.storage.create(PLAN_KEY, readable_json(plan)):
            self.refuse_other(plan)

    def refuse_other(self, plan: Plan) -> bool:
        """Raise ``PlanMismatchError`` where the place holds another plan; says if it holds this."""
        if self.storage.size(PLAN_KEY) is None:
            return False
        if different := list(differences(plan, self.plan())):
            raise PlanMismatchError(
                f"{self.kind} '{self.name}' was made with another plan ({'; '.join(different)}): "
                f"give this one another name, or remove {self.storage.location}"
            )
        return True

    def plan(self) -> Plan:
        """The plan of the artifact; raises ``NotFoundError`` or ``DamagedError``."""
        return self._checked(PLAN_KEY, read_object)

    def write(
        self,
        files: Mapping[str, bytes],
        facts: Mapping[str, Any],
        *,
        machine: Machine | None = None,
    ) -> dict[str, Any]:
        """Write the files, then the card with their checksums; gives the card.

        Where someone else has finished it meanwhile, that one stays. Raises ``LeaseError`` where
        someone else is writing it.
        """
        purpose = f"write {self.kind} {self.name}"
        with Lease(self.storage, purpose=purpose, machine=machine) as lease:
            if self.is_settled():
                return self.card()
            staged = self.stage(files, facts)
            lease.check()
            return self.publish(staged)

    def stage(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> "StagedArtifact":
        """Write the files and the card where nobody looks, to be published."""
        vouched = {key: vouch(data) for key, data in files.items()}
        plan = vouch(self.storage.read(PLAN_KEY))
        card = sealed({**facts, "plan": plan, "files": vouched})
        return StagedArtifact(
            self.storage.stage_all({**files, self.card_key: card}), unsealed(card)
        )

    def publish(self, staged: "StagedArtifact") -> dict[str, Any]:
        """Put what was staged into its place, the card last; gives the card.

        Only for who holds the lease, and has seen it after staging: see ``ShardSet.publish``.
        """
        names = dict(staged.names)
        card = names.pop(self.card_key)
        self.storage.publish_all(names)
        self.storage.publish(card, self.card_key)
        return staged.card

    def card(self) -> dict[str, Any]:
        """The card; raises ``NotFoundError`` where the artifact is missing or not finished.

        Raises ``DamagedError`` where it was altered.
        """
        if not self.is_complete():
            state = "is not finished" if self.storage.size(PLAN_KEY) is not None else "is not there"
            raise NotFoundError(f"{self.kind} '{self.name}' {state} ({self.storage.location})")
        return self._checked(self.card_key, _card_of)

    def read(self, key: str) -> bytes:
        """A file of the artifact, checked against the card; raises ``DamagedError``."""
        data = self.storage.read(key)
        if vouch(data) != self.card()["files"].get(key):
            raise DamagedError(
                f"{self.storage.location}/{key} is not what the card vouches for; "
                "remove the folder and make it again"
            )
        return data

    def _checked(self, key: str, decode: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        try:
            return decode(self.storage.read(key))
        except ValueError as error:
            raise DamagedError(
                f"{self.storage.location}/{key} cannot be read ({error}); "
                "remove the folder and make it again"
            ) from error


def _card_of(data: bytes) -> dict[str, Any]:
    """The card that some bytes hold; raises ``ValueError``."""
    card = unsealed(data)
    check_vouched(card.get("files"))
    return card
