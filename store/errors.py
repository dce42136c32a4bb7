"""Errors of the store."""


class StoreError(Exception):
    """An operation of the store failed; the message is one line with the reason and a remedy."""


class NotFoundError(StoreError, FileNotFoundError):
    """The store contains nothing with that name."""


class StoreNotFoundError(NotFoundError):
    """There is no store at that location."""


class SetNotFoundError(NotFoundError):
    """No set of that kind has that name."""


class FeatureSetNotFoundError(SetNotFoundError):
    """No feature set has that name."""


class ArtifactNotFoundError(NotFoundError):
    """The artifact does not exist, or is not finished."""


class AmbiguousNameError(StoreError, LookupError):
    """Several items in the store match the name."""


class FormatError(StoreError, ValueError):
    """A store, plan or receipt has an unsupported or invalid format."""


class ShardSizeError(FormatError):
    """The shards are too small for the number of rows, or too large for their files."""


class PlanMismatchError(StoreError, ValueError):
    """The location holds data of another plan; the message names the fields that differ."""


class IncompleteError(StoreError, ValueError):
    """A set was read before all of its shards existed."""


class FailedRowsError(StoreError, ValueError):
    """More rows of a set failed than are allowed, and they were not accepted."""


class RetryableRowsError(FailedRowsError):
    """Too many rows of a feature set failed; they can be recomputed or accepted."""


class DamagedError(StoreError):
    """Bytes on disk do not match their receipt."""


class DamagedSetError(DamagedError):
    """A file of a set of shards is damaged; its shard can be computed again.

    Attributes:
        set_name: name of the feature set, if it is one.
    """

    def __init__(self, message: str, set_name: str = "") -> None:
        super().__init__(message)
        self.set_name = set_name


class LeaseError(StoreError, BlockingIOError):
    """Another driver is writing this set."""


class SweptError(StoreError):
    """Staged files were removed: another driver has taken over, and this one cannot publish."""


class WriteError(StoreError, OSError):
    """The disk is full, read-only or faulty; no partial write was left behind."""

    def __str__(self) -> str:
        return str(self.strerror or self.args[0])  # OSError would prefix its number


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
