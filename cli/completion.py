"""Words that complete an option in a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cli import options


def completing(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What typer calls with the typed text: the words that begin with its last item."""

    def complete(typed: str) -> list[str]:
        before, comma, last = typed.rpartition(",")
        return [f"{before}{comma}{word}" for word in words() if word.startswith(last)]

    return complete


def names_in_store(*kinds: str) -> Callable[[], list[str]]:
    """Returns the names of outputs in the default store; none if it cannot be read."""

    def names() -> list[str]:
        from os import environ

        from stages.contents import ARTIFACT_KINDS, SET_KINDS
        from store.catalog import FeatureStore
        from store.errors import StoreError

        try:
            store = FeatureStore(environ.get("INTRO_PIPE_STORE", options.DEFAULT_STORE))
            sets = [kind for kind in kinds if kind in SET_KINDS]
            found = [each.name for kind in sets for each in store.sets(kind)]
            others = [kind for kind in kinds if kind in ARTIFACT_KINDS]
            return found + [each.name for kind in others for each in store.artifacts(kind)]
        except (StoreError, OSError):
            return []

    return names


def data_sets() -> list[str]:
    """The names of the known data sets."""
    from stages.data.known import KNOWN

    return list(KNOWN)
