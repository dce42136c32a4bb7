"""Names that may be meant to be the same: "3" and "3.0", "Cat" and "cat"."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable
from decimal import Decimal, InvalidOperation

MAX_SHOWN = 3
_INVISIBLE = ("Cc", "Cf")
"""Unicode's control and format characters: a carriage return, a zero-width space."""


def near_equal(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that differ only in what is easily overlooked.

    That is: case, blanks, invisible characters, the Unicode form (NFC and NFD, full width), and
    the spelling of a number.

    >>> near_equal(["Cat", "dog", "cat", "3", "3.0"])
    [('Cat', 'cat'), ('3', '3.0')]
    """
    groups: dict[Hashable, dict[str, None]] = {}
    for name in names:
        groups.setdefault(_essence(name), {})[name] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_equal_note(names: Iterable[str], where: str) -> str | None:
    """One line that names the nearly equal names among the classes of ``where``; else ``None``."""
    groups = near_equal(names)
    if not groups:
        return None
    shown = "; ".join(" and ".join(map(_shown, group)) for group in groups[:MAX_SHOWN])
    more = f"; and {len(groups) - MAX_SHOWN} more" if len(groups) > MAX_SHOWN else ""
    return (
        f"{where}: these names are nearly equal but count as different classes: {shown}{more}; "
        "if they mean the same class, give them the same name"
    )


def near_hint(name: str, known: Iterable[str]) -> str:
    """`` (nearly equal: 'cat')`` if a name is nearly equal to a known one, else empty."""
    essence = _essence(name)
    near = next((each for each in known if _essence(each) == essence), None)
    return "" if near is None else f" (nearly equal: {_shown(near)})"


def number_in(name: str) -> Decimal | None:
    """The exact number that a name represents: ``1e3`` and ``1000`` are the same number."""
    try:
        number = Decimal(name)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _essence(name: str) -> Hashable:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = " ".join(text.split())  # before invisible ones are removed: a tab counts as a blank
    text = "".join(each for each in text if unicodedata.category(each) not in _INVISIBLE).strip()
    return text if (number := number_in(text)) is None else number


def _shown(name: str) -> str:
    """The name in quotes, with escapes if it could look the same as another name."""
    is_plain = name == unicodedata.normalize("NFKC", name)
    return repr(name) if is_plain else ascii(name)
