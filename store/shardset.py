"""A set: rows of one plan, written shard by shard, each vouched for by a receipt."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from store.errors import (
    DamagedError,
    FormatError,
    NotFoundError,
    PlanMismatchError,
)
from store.plan import Plan, differences, fingerprint, read_object, readable_json
from store.seal import check_vouched, sealed, unsealed, vouch
from store.shards import Shard, shards_of
from store.storage import Storage

PLAN_KEY = "plan.json"
RECEIPTS = "receipts"
BESIDE = "beside"
"""Fact of a receipt: fixed files that its rows are read with, and what vouches for them."""

MAX_SHARDS = 100_000
"""File names number shards with five digits, so that names sort as rows do."""


def receipt_key(shard: Shard) -> str:
    """Where the receipt of a shard lies; zero-padded, so that names sort as rows do."""
    return f"{RECEIPTS}/{shard.index:05d}.json"


@dataclass(frozen=True, slots=True)
class StagedShard:
    """A shard whose files have no place yet: key -> staged name, and the receipt."""

    shard: Shard
    names: Mapping[str, str]
    receipt: dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class ShardSet:
    """A folder with ``plan.json``, data files and ``receipts/``: holds a place and a plan.

    The plan has at least ``n_rows`` and ``shard_rows``. Make one with ``create`` or ``open``.
    """

    storage: Storage
    plan: Plan

    @classmethod
    def create(cls, storage: Storage, plan: Plan, fixed_files: Mapping[str, bytes]) -> Self:
        """Open the set, writing plan and fixed files first where there is none yet.

        Fixed files follow from the plan (array metadata, labels). Raises ``PlanMismatchError`` with
        the differing fields where the place holds another plan, ``FormatError`` for a plan that
        cannot be one.
        """
        _check(plan)
        if not storage.create(PLAN_KEY, readable_json(plan)):
            there = cls.open(storage).plan
            if different := list(differences(plan, there)):
                raise PlanMismatchError(
                    f"{storage.location} holds results of another plan ({'; '.join(different)}): "
                    "choose another place, or remove that folder"
                )
        for key, data in fixed_files.items():
            if storage.size(key) != len(data) or storage.read(key) != data:
                storage.write(key, data)
        return cls(storage, plan)

    @classmethod
    def open(cls, storage: Storage) -> Self:
        """Open a set that exists; raises ``NotFoundError`` or ``FormatError``."""
        return cls(storage, read_plan(storage))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the plan."""
        return fingerprint(self.plan)

    @property
    def n_rows(self) -> int:
        """Rows when complete."""
        return int(self.plan["n_rows"])

    @property
    def chunk_rows(self) -> int:
        """Rows of a full shard."""
        return min(int(self.plan["shard_rows"]), self.n_rows)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """Every shard of the plan, done or not."""
        return shards_of(self.n_rows, int(self.plan["shard_rows"]))

    def done(self) -> set[int]:
        """Indexes of the shards that have a receipt: one listing, no file is opened."""
        there = set(self.storage.keys(RECEIPTS))
        return {shard.index for shard in self.shards if receipt_key(shard) in there}

    def missing(self) -> tuple[Shard, ...]:
        """The shards that are still to do, in row order."""
        done = self.done()
        return tuple(shard for shard in self.shards if shard.index not in done)

    def is_complete(self) -> bool:
        """Whether every shard has its receipt."""
        return not self.missing()

    def receipt(self, shard: Shard) -> dict[str, Any]:
        """The receipt of a shard; raises ``NotFoundError``, ``DamagedError`` if it was altered."""
        data = self.storage.read(receipt_key(shard))
        try:
            return _receipt_in(data)
        except ValueError as error:
            raise DamagedError(
                f"{self._named(receipt_key(shard))} cannot be trusted ({error}): see "
                "`intro-pipe repair`"
            ) from error

    def receipts(self) -> Iterator[dict[str, Any]]:
        """The receipts there are, in row order."""
        done = self.done()
        return (self.receipt(shard) for shard in self.shards if shard.index in done)

    def stage(
        self, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> "StagedShard":
        """Write the files of a shard where nobody looks: a worker's half of a commit.

        Any number of workers may stage the same shard, and die over it.
        """
        facts = {**facts, "host": platform.node(), "written_at": round(time.time(), 3)}
        receipt = self._receipt_of(shard, files, facts)
        return StagedShard(shard, self.storage.stage_all(files), receipt)

    def publish(
        self, staged: "StagedShard", *, replacing: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Put a staged shard into its place, its receipt last: the driver's half of a commit.

        Gives the receipt. A shard that has one already is left as it is; but ``replacing`` other
        bytes, it is taken back first, by that check of the lease, once all of this one is staged.

        Only who holds the lease may publish, and must have seen the lease after the shard was
        staged. The receipt is staged before any file moves: so whoever takes the lease over, and
        sweeps, has stopped this publication wherever it is, and ``SweptError`` is raised.
        """
        key = receipt_key(staged.shard)
        is_there = self.storage.size(key) is not None
        if is_there and (not replacing or self.holds(staged)):
            self.drop(staged)
            return self.receipt(staged.shard)
        receipt = self.storage.stage(key, sealed(staged.receipt))
        try:
            if is_there and replacing:
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
        if theirs["files"] != staged.receipt["files"]:
            self.discard([staged.shard], lambda: None)
            raise DamagedError(
                f"{self._named(key)}: two drivers wrote this shard at once, with different bytes; "
                "it is to be computed again"
            )
        return theirs

    def commit(
        self, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Stage a shard and publish it: for who is worker and driver in one."""
        return self.publish(self.stage(shard, files, facts))

    def holds(self, staged: "StagedShard") -> bool:
        """Whether the shard is there, with the bytes of this one."""
        try:
            return bool(self.receipt(staged.shard)["files"] == staged.receipt["files"])
        except (DamagedError, NotFoundError):
            return False

    def drop(self, staged: "StagedShard") -> None:
        """Forget a staged shard."""
        for name in staged.names.values():
            self.storage.drop(name)

    def failed_rows(self) -> dict[int, int]:
        """Shard index -> rows whose sample could not be read, by the receipts there are."""
        done = self.done()
        failed = {index: self.receipt(self.shards[index]).get("failed", {}) for index in done}
        return {index: len(rows) for index, rows in sorted(failed.items()) if rows}

    def n_failed_rows(self) -> int:
        """Their number in all shards."""
        return sum(self.failed_rows().values())

    def discard(self, shards: Iterable[Shard], check: Callable[[], None]) -> None:
        """Take shards back to missing, durably: their data is replaced when they are redone.

        Only for who holds the lease, as ``check`` has to see. Who takes it over, and sweeps, has
        stopped this wherever it is, and ``SweptError`` is raised.
        """
        self.storage.withdraw([receipt_key(shard) for shard in shards], check)

    def confirm(self) -> None:
        """Make the receipts durable that are there: for who is about to say that they are.

        Who wrote the last one may have died before that.
        """
        self.storage.sync(RECEIPTS)

    def _receipt_of(
        self, shard: Shard, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The receipt as it will be read: what is no JSON in the facts is refused here."""
        receipt = {
            "plan": self.fingerprint,
            "shard": {"index": shard.index, "start": shard.start, "stop": shard.stop},
            "files": {key: vouch(data) for key, data in files.items()},
        }
        return dict(json.loads(readable_json({**receipt, **facts, **receipt})))

    def _named(self, key: str) -> str:
        return f"{self.storage.location}/{key}"


def read_plan(storage: Storage) -> Plan:
    """The plan of a set; raises ``NotFoundError`` or ``FormatError``."""
    data = storage.read(PLAN_KEY)
    try:
        plan = read_object(data)
        _check(plan)
    except ValueError as error:
        raise FormatError(
            f"{storage.location}/{PLAN_KEY} is not a plan ({error}): damaged, or not ours; "
            "remove the folder and compute it again"
        ) from error
    return plan


def _receipt_in(data: bytes) -> dict[str, Any]:
    """The receipt that some bytes hold; raises ``ValueError``."""
    receipt = unsealed(data)
    check_vouched(receipt.get("files"))
    failed = receipt.get("failed", {})
    if not isinstance(failed, dict) or not all(row.isdecimal() for row in failed):
        raise ValueError("expected the failed rows by number")
    return receipt


def _check(plan: Plan) -> None:
    """Raises ``FormatError`` where a plan has no rows, or more shards than names sort by."""
    n_rows, shard_rows = plan.get("n_rows"), plan.get("shard_rows")
    if type(n_rows) is not int or type(shard_rows) is not int:
        raise FormatError("expected n_rows and shard_rows, whole numbers")
    if n_rows < 1 or shard_rows < 1:
        raise FormatError(f"{n_rows} rows in shards of {shard_rows}: expected one or more of each")
    if (n_shards := -(-n_rows // shard_rows)) > MAX_SHARDS:
        raise FormatError(
            f"{n_rows} rows in shards of {shard_rows} are {n_shards} shards, the most are "
            f"{MAX_SHARDS}: take more rows a shard (--shard-rows)"
        )


def find_set(storage: Storage) -> ShardSet | None:
    """The set at that place, ``None`` where there is none."""
    try:
        return ShardSet.open(storage)
    except NotFoundError:
        return None
