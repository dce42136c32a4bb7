"""Failed rows: how many a set may have, why they failed, and whether they were accepted.

A set with more failed rows than allowed counts as failed, even if every shard has its receipt,
until the rows are retried or accepted: `accept` writes ``accepted.json`` beside the plan.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from store.encoding import samples_key
from store.errors import FailedRowsError, NotFoundError, RetryableRowsError
from store.schema import Schema
from store.seal import sealed, unsealed
from store.shards import Shard
from store.shardset import ShardSet
from store.tables import read_table

MAX_FAILED_SHARE = 0.01
"""Largest share of a set's rows that may fail."""

FREE_FAILURES = 10
"""Failed rows that are allowed in a small set, where 1 % may be less than one row."""

ACCEPTED_KEY = "accepted.json"
"""File of a set that records how many failed rows were accepted."""

N_REASONS = 3
"""Number of reasons that are listed, most common first."""

MAX_REASON = 100
"""Characters of a reason in a list; the receipt and the column ``status`` have the full text."""

MAX_SEARCHED = 1_000
"""Characters of a reason that are compared; the pattern takes the square of their number."""

_VARYING = re.compile(
    r"(?P<limit>\bexpected at (?:least|most) [\dx,]+)|'[^']*'|\"[^\"]*\"|\S*/\S*|0x[0-9a-fA-F]+|\d+"
)
"""Parts of a reason that vary between rows: names, paths, addresses, numbers but limits."""

_ID = "sample_id"


@dataclass(frozen=True, slots=True)
class Failures:
    """The failed rows of a set, according to the existing receipts.

    Attributes:
        n_rows: rows of the whole set.
        counts: reason, without its varying parts -> number of rows.
        examples: reason -> the first sample that failed for it.
        n_accepted: failed rows that were accepted.
    """

    n_rows: int
    counts: Mapping[str, int]
    examples: Mapping[str, str]
    n_accepted: int

    @property
    def n_failed(self) -> int:
        """Number of failed rows."""
        return sum(self.counts.values())

    @property
    def are_too_many(self) -> bool:
        """Whether the set is failed: more rows failed than are allowed or were accepted."""
        return self.n_failed > _maximum(self.n_rows, self.n_accepted)

    @property
    def are_accepted(self) -> bool:
        """Whether the set would count as failed if its failed rows had not been accepted."""
        return not self.are_too_many and self.n_failed > _allowed(self.n_rows)

    def __str__(self) -> str:
        """One line: how many rows failed, and the most common reasons with an example each."""
        common = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        reasons = [
            f"{self.counts[reason]:,} x {_shortened(reason)} "
            f"(first: {_shortened(self.examples[reason])})"
            for reason in common[:N_REASONS]
        ]
        if len(common) > N_REASONS:
            reasons.append(f"{len(common) - N_REASONS:,} other reasons")
        return f"{self._count()}: {', '.join(reasons)}"

    def _count(self) -> str:
        count = f"{self.n_failed:,} of {self.n_rows:,} rows failed"
        if self.are_accepted:
            return f"{count}, which was accepted"
        if not self.are_too_many:
            return count
        too_many = f"more than {MAX_FAILED_SHARE:.0%}"
        return f"{count}, {'all of them' if self.n_failed == self.n_rows else too_many}"


def failures_of(
    shard_set: ShardSet, failed: Mapping[int, Mapping[int, str]] | None = None
) -> Failures:
    """Count the failed rows of a set and why they failed; raises ``DamagedError``.

    ``failed`` is `ShardSet.failed` if the receipts have been read already.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for index, rows in (shard_set.failed() if failed is None else failed).items():
        shard = shard_set.shards[index]
        ids = _sample_ids(shard_set, shard)
        for row, why in rows.items():
            sample = ids.get(row, "")
            reason = _reason(why, sample)
            counts[reason] += 1
            examples.setdefault(reason, sample or f"row {row}")
    return Failures(shard_set.n_rows, counts, examples, n_accepted(shard_set))


def max_failed_rows(shard_set: ShardSet) -> float:
    """Failed rows that a set may have: the allowed share, or as many as were accepted."""
    return _maximum(shard_set.n_rows, n_accepted(shard_set))


def is_failed(shard_set: ShardSet) -> bool:
    """Whether more rows of a set failed than are allowed or were accepted."""
    return shard_set.n_failed_rows() > max_failed_rows(shard_set)


def check_failures(shard_set: ShardSet) -> int:
    """Number of failed rows of a set; raises ``FailedRowsError`` if the set is failed."""
    n_failed = shard_set.n_failed_rows()
    if n_failed > max_failed_rows(shard_set):
        raise refusal(shard_set)
    return n_failed


def refusal(shard_set: ShardSet) -> FailedRowsError:
    """The error for a failed set: its name, how many rows failed, why, and how to continue."""
    name = shard_set.plan.get("name", shard_set.storage.location)
    found = f"{name}: {failures_of(shard_set)}; fix the images"
    inputs = shard_set.plan.get("inputs")
    is_derived = isinstance(inputs, Mapping) and "features" in inputs  # from rows of another set
    if "schema" in shard_set.plan and not is_derived:
        return RetryableRowsError(f"{found} and compute these rows again, or accept them")
    return FailedRowsError(
        f"{found}, remove {shard_set.storage.location}, and run the command again"
    )


def accept(shard_set: ShardSet) -> int:
    """Record that the failed rows of a set are accepted, and return their number.

    The caller must hold the lease of the set. The set stays accepted as long as no further row
    fails. Nothing is written if the number of failed rows is allowed anyway.
    """
    n_failed = shard_set.n_failed_rows()
    if n_failed > max_failed_rows(shard_set):
        facts = {
            "plan": shard_set.fingerprint,
            "failed_rows": n_failed,
            "accepted_at": round(time.time(), 3),
        }
        shard_set.storage.write(ACCEPTED_KEY, sealed(facts))
    return n_failed


def n_accepted(shard_set: ShardSet) -> int:
    """Number of accepted failed rows; 0 if none were accepted, or the file was altered."""
    with suppress(NotFoundError, ValueError, KeyError):
        facts = unsealed(shard_set.storage.read(ACCEPTED_KEY))
        n = facts["failed_rows"]
        if facts["plan"] == shard_set.fingerprint and type(n) is int:
            return n
    return 0


def _allowed(n_rows: int) -> float:
    """Failed rows that are always allowed in a set of ``n_rows``; never all of them."""
    return min(max(FREE_FAILURES, MAX_FAILED_SHARE * n_rows), n_rows - 1)


def _maximum(n_rows: int, n_accepted: int) -> float:
    """Failed rows that a set of ``n_rows`` may have if ``n_accepted`` were accepted."""
    return max(_allowed(n_rows), n_accepted)


def _sample_ids(shard_set: ShardSet, shard: Shard) -> dict[int, str]:
    """Row -> ``sample_id`` of a shard; empty if the set has no such column or is damaged."""
    try:
        schema = Schema.from_json(shard_set.plan.get("schema"))
        if _ID not in dict(schema.columns):
            return {}
        table = read_table(shard_set.storage.read(samples_key(shard)), [_ID])
    except (pa.ArrowException, ValueError, OSError):
        return {}
    return dict(enumerate(map(str, table[_ID].to_pylist()), start=shard.start))


def _reason(reason: str, sample: str) -> str:
    """A reason without the parts that vary between rows.

    >>> _reason("a/1.png: cannot identify image file '/data/a/1.png'", "a/1.png")
    'cannot identify image file ...'
    >>> _reason("a/1.png: 30x30 pixels, expected at least 176x176", "a/1.png")
    '...x... pixels, expected at least 176x176'
    """
    text = reason.removeprefix(f"{sample}: ")[:MAX_SEARCHED]
    return _VARYING.sub(lambda found: found["limit"] or "...", text)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."
