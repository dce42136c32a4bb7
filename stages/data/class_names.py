"""Names of classes: numbers for classes without names, and short lists of names for messages."""

from __future__ import annotations

from collections.abc import Sequence

MAX_SHOWN = 4


def numbers(n_classes: int) -> tuple[str, ...]:
    """Names of classes that have only numbers.

    >>> numbers(3)
    ('0', '1', '2')
    """
    return tuple(map(str, range(n_classes)))


def first_few(names: Sequence[str]) -> str:
    """The first names, joined with commas.

    >>> first_few(["ant", "bee", "cat", "dog", "elk"])
    'ant, bee, cat, dog, ...'
    """
    return ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
