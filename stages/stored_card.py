"""Cards of results and reports, as dataclasses."""

from __future__ import annotations

from typing import Self

from stages.typed import typed
from store.artifacts import Artifact


class StoredCard:
    """A dataclass whose fields are the card of an artifact."""

    __slots__ = ()

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Read the card of a finished result or report.

        Raises:
            NotFoundError, DamagedError: the artifact is not finished, or was altered.
            InputError: its card is not in our format.
        """
        return typed(cls, artifact.card(), f"card of {artifact.kind} '{artifact.name}'")
