"""What can go wrong between us and the disk."""


class StoreError(Exception):
    """The store cannot do what was asked; the message is one line that says why and what to do."""


class NotFoundError(StoreError, FileNotFoundError):
    """Nothing of that name is in the store."""


class AmbiguousNameError(StoreError, LookupError):
    """More than one thing in the store answers to that name."""


class FormatError(StoreError, ValueError):
    """The store, a plan or a receipt is of another format, or is not what it says it is."""


class PlanMismatchError(StoreError, ValueError):
    """The same place holds results of another plan; the message names the fields that differ."""


class IncompleteError(StoreError, ValueError):
    """A set is read before all its shards are there."""


class DamagedError(StoreError):
    """Bytes on disk are not those that their receipt vouches for."""


class LeaseError(StoreError, BlockingIOError):
    """Another driver is at work on this set."""


class SweptError(StoreError):
    """What was staged is gone: another driver has taken over, and nothing more can be published."""


class WriteError(StoreError, OSError):
    """The disk is full, read-only or broken; nothing was left half done."""

    def __str__(self) -> str:
        return str(self.strerror or self.args[0])  # an OSError puts its number in front
