"""Shard sets: the rows of one plan, written shard by shard, each with a receipt."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from store.errors import (
    DamagedError,
    DamagedSetError,
    FormatError,
    NotFoundError,
    PlanMismatchError,
    ShardSizeError,
)
from store.plan import Plan, differences, fingerprint, read_object, readable_json
from store.receipts import Receipt
from store.shards import Shard, shards_of
from store.storage import Storage

PLAN_KEY = "plan.json"
RECEIPTS = "receipts"
MAX_SHARDS = 100_000
"""File names number shards with five digits, so that names sort in row order."""

MAX_ROWS = 10**12
"""Maximum number of rows; a plan from elsewhere can claim any, and arrays use 64-bit indices."""


def receipt_key(shard: Shard) -> str:
    """Key of the receipt of a shard; zero-padded so that names sort in row order."""
    return f"{RECEIPTS}/{shard.index:05d}.json"


@dataclass(frozen=True, slots=True)
class StagedShard:
    """A shard whose files are staged: key -> staged name, and its receipt."""

    shard: Shard
    names: Mapping[str, str]
    receipt: Receipt


@dataclass(frozen=True)
class ShardSet:
    """A folder with ``plan.json``, data files and ``receipts/``.

    The plan has at least ``n_rows`` and ``shard_rows``. Use ``create`` or ``open``.
    """

    storage: Storage
    plan: Plan

    @classmethod
    def create(cls, storage: Storage, plan: Plan, fixed_files: Mapping[str, bytes]) -> Self:
        """Open the set, writing its plan and fixed files first if they do not exist.

        Args:
            storage: where the set lies.
            plan: everything that determines the rows.
            fixed_files: key -> content of files that depend on the plan alone, such as array
                metadata and labels.

        Raises:
            PlanMismatchError: ``storage`` holds another plan; the message lists the fields.
            FormatError: the plan is invalid.
        """
        _check(plan)
        if not storage.create(PLAN_KEY, readable_json(plan)):
            existing = cls.open(storage).plan
            if different := list(differences(plan, existing)):
                raise PlanMismatchError(
                    f"{storage.location} holds data of another plan ({'; '.join(different)}): "
                    "choose another location, or remove that folder"
                )
        for key, data in fixed_files.items():
            if storage.size(key) != len(data) or storage.read(key) != data:
                storage.write(key, data)
        return cls(storage, plan)

    @classmethod
    def open(cls, storage: Storage) -> Self:
        """Open an existing set; raises ``NotFoundError`` or ``FormatError``."""
        return cls(storage, read_plan(storage))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the plan."""
        return fingerprint(self.plan)

    @property
    def n_rows(self) -> int:
        """Number of rows of the complete set."""
        return int(self.plan["n_rows"])

    @property
    def chunk_rows(self) -> int:
        """Rows of a full shard."""
        return min(int(self.plan["shard_rows"]), self.n_rows)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards of the plan, done or not."""
        return shards_of(self.n_rows, int(self.plan["shard_rows"]))

    def done(self) -> set[int]:
        """Indexes of the shards that have a receipt; lists the receipts without opening them."""
        existing = set(self.storage.keys(RECEIPTS))
        return {shard.index for shard in self.shards if receipt_key(shard) in existing}

    def missing(self) -> tuple[Shard, ...]:
        """Shards without a receipt, in row order."""
        done = self.done()
        return tuple(shard for shard in self.shards if shard.index not in done)

    def is_complete(self) -> bool:
        """Whether every shard has a receipt."""
        return not self.missing()

    def receipt(self, shard: Shard) -> Receipt:
        """Read a receipt; raises ``NotFoundError``, or ``DamagedError`` if it was altered."""
        data = self.storage.read(receipt_key(shard))
        try:
            return Receipt.from_json(data)
        except ValueError as error:
            raise DamagedSetError(
                f"{self._named(receipt_key(shard))} cannot be trusted ({error})"
            ) from error

    def receipts(self) -> Iterator[Receipt]:
        """The existing receipts, in row order."""
        done = self.done()
        return (self.receipt(shard) for shard in self.shards if shard.index in done)

    def content(self) -> str:
        """Hash of the checksums of all files; rows may be recomputed in place."""
        return fingerprint(
            {key: f.sha256 for each in self.receipts() for key, f in each.files.items()}
        )

    def stage(
        self, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> "StagedShard":
        """Write the files of a shard to the staging area: the worker's half of a commit.

        Any number of workers may stage the same shard, and may crash while doing so.
        """
        facts = {**facts, "host": platform.node(), "written_at": round(time.time(), 3)}
        receipt = Receipt.of(self.fingerprint, shard, files, facts)
        return StagedShard(shard, self.storage.stage_all(files), receipt)

    def publish(
        self, staged: "StagedShard", *, replacing: Callable[[], None] | None = None
    ) -> Receipt:
        """Publish a staged shard, its receipt last: the driver's half of a commit.

        The caller must hold the lease, and must have checked it after the shard was staged. The
        receipt is staged before any file is moved, so a driver that takes over and sweeps stops
        this publication at any point, and ``SweptError`` is raised.

        Args:
            staged: the shard, from ``stage``.
            replacing: check of the lease. If given, and the shard exists with other bytes or other
                ``inputs``, it is discarded and replaced; otherwise an existing shard is kept.

        Returns:
            The receipt of the shard.
        """
        key = receipt_key(staged.shard)
        exists = self.storage.size(key) is not None
        if exists and (not replacing or self.holds(staged)):
            self.drop(staged)
            return self.receipt(staged.shard)
        receipt = self.storage.stage(key, staged.receipt.to_json())
        try:
            if exists and replacing:
                self.discard([staged.shard], replacing)
            self.storage.publish_all(staged.names)
            if self.storage.publish_new(receipt, key):
                return staged.receipt
        except BaseException:
            self.drop(staged)
            raise
        finally:
            self.storage.drop(receipt)
        theirs = self.receipt(staged.shard)
        if theirs.files != staged.receipt.files:
            self.discard([staged.shard], lambda: None)
            raise DamagedError(
                f"{self._named(key)}: two drivers wrote this shard at once, with different bytes; "
                "it must be recomputed"
            )
        return theirs

    def commit(self, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Receipt:
        """Stage and publish a shard, for a process that is both worker and driver."""
        return self.publish(self.stage(shard, files, facts))

    def holds(self, staged: "StagedShard") -> bool:
        """Whether the shard exists with the same bytes and inputs as the staged one."""
        try:
            found = self.receipt(staged.shard)
        except (DamagedError, NotFoundError):
            return False
        own = staged.receipt
        return (found.files, found.inputs) == (own.files, own.inputs)

    def drop(self, staged: "StagedShard") -> None:
        """Remove the files of a staged shard."""
        for name in staged.names.values():
            self.storage.drop(name)

    def failed(self) -> dict[int, dict[int, str]]:
        """Shard index -> failed row -> reason, according to the existing receipts.

        Shards without failed rows are left out.
        """
        return {
            index: rows
            for index in sorted(self.done())
            if (rows := self.receipt(self.shards[index]).failed)
        }

    def failed_rows(self) -> dict[int, int]:
        """Shard index -> number of its failed rows; shards without failed rows are left out."""
        return {index: len(rows) for index, rows in self.failed().items()}

    def n_failed_rows(self) -> int:
        """Number of failed rows in all shards."""
        return sum(self.failed_rows().values())

    def discard(self, shards: Iterable[Shard], check: Callable[[], None]) -> None:
        """Durably remove the receipts of shards; their data is replaced when they are recomputed.

        The caller must hold the lease, which ``check`` verifies. A driver that takes over and
        sweeps stops this at any point, and ``SweptError`` is raised.
        """
        self.storage.withdraw([receipt_key(shard) for shard in shards], check)

    def confirm(self) -> None:
        """Make the existing receipts durable; call it before reporting the set as complete.

        The process that wrote the last one may have crashed before syncing its folder.
        """
        self.storage.sync(RECEIPTS)

    def _named(self, key: str) -> str:
        return f"{self.storage.location}/{key}"


def read_plan(storage: Storage) -> Plan:
    """Read the plan of a set; raises ``NotFoundError`` or ``FormatError``."""
    data = storage.read(PLAN_KEY)
    try:
        plan = read_object(data)
        _check(plan)
    except ValueError as error:
        raise FormatError(
            f"{storage.location}/{PLAN_KEY} is not a plan ({error}): it is damaged, or was not "
            "written by intro-pipe; remove the folder and compute it again"
        ) from error
    return plan


def _check(plan: Plan) -> None:
    """Raise ``FormatError`` if a plan has no rows, or more shards than file names can number."""
    n_rows, shard_rows = plan.get("n_rows"), plan.get("shard_rows")
    if type(n_rows) is not int or type(shard_rows) is not int:
        raise FormatError("expected n_rows and shard_rows, whole numbers")
    if n_rows < 1 or shard_rows < 1:
        raise FormatError(f"{n_rows} rows in shards of {shard_rows}: expected one or more of each")
    if n_rows > MAX_ROWS:
        raise FormatError(f"expected at most {MAX_ROWS:,} rows in a set, found more")
    if (n_shards := -(-n_rows // shard_rows)) > MAX_SHARDS:
        raise ShardSizeError(
            f"{n_rows} rows in shards of {shard_rows} are {n_shards} shards, at most "
            f"{MAX_SHARDS} are allowed: use more rows per shard"
        )


def find_set(storage: Storage) -> ShardSet | None:
    """The set at a location, or ``None`` if there is none."""
    try:
        return ShardSet.open(storage)
    except NotFoundError:
        return None
