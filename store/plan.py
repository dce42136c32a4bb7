"""Plans: everything that determines the bytes of a set, and nothing else."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Plan = Mapping[str, Any]
"""A JSON object. Two runs with equal plans write equal rows."""

MAX_DEPTH = 50
"""Maximum nesting of a JSON file; Python itself fails at some hundreds of levels."""

_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"

NOTHING = "nothing"
"""Stands for a value that is missing, in words."""

FINGERPRINT_DIGITS = 12
"""Hexadecimal digits of a fingerprint: 48 bits, enough for the sets of one store."""


def canonical_json(value: Any) -> bytes:  # Any: whatever JSON can hold
    """Canonical form of a JSON value: sorted keys, no spaces, finite numbers only."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def readable_json(value: Any) -> bytes:  # Any: whatever JSON can hold
    """Indented JSON with keys in the given order."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_object(data: bytes | str) -> dict[str, Any]:  # Any: whatever JSON can hold
    """Parse a JSON object; raises ``ValueError`` for anything else."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    _check_depth(value, MAX_DEPTH)
    return value


def fingerprint(value: Any) -> str:  # Any: whatever JSON can hold
    """The first twelve hexadecimal digits of the SHA-256 of the canonical JSON.

    >>> fingerprint({"b": 1, "a": [2]}) == fingerprint({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()[:FINGERPRINT_DIGITS]


def is_plan(data: bytes, digest: str) -> bool:
    """Whether ``data`` is, byte for byte, a ``plan.json`` with that fingerprint."""
    try:
        plan = read_object(data)
        return readable_json(plan) == data and fingerprint(plan) == digest
    except ValueError:
        return False


class Change(NamedTuple):
    """Where two JSON values differ, such as ``a.b``, and how, in words."""

    path: str
    ours: str
    theirs: str


def changes(ours: Any, theirs: Any, path: str = "") -> Iterator[Change]:
    """Yield every leaf in which two JSON values differ.

    >>> list(changes({"a": {"b": 1}}, {"a": {"b": [{"name": "c", "size": 2}]}}))
    [Change(path='a.b', ours='1', theirs='name c, size 2')]
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted(ours.keys() | theirs.keys()):
            below = f"{path}.{key}" if path else str(key)
            if key not in theirs:
                yield Change(below, _short(ours[key]), NOTHING)
            elif key not in ours:
                yield Change(below, NOTHING, _short(theirs[key]))
            else:
                yield from changes(ours[key], theirs[key], below)
    elif canonical_json(ours) != canonical_json(theirs):
        yield Change(path, _short(ours), _short(theirs))


def differences(ours: Any, theirs: Any) -> Iterator[str]:
    """Yield ``path: ours, found theirs`` for every leaf in which two JSON values differ.

    >>> list(differences({"a": {"b": 1}}, {"a": {"b": 2}}))
    ['a.b: 1, found 2']
    """
    return (f"{path}: {one}, found {other}" for path, one, other in changes(ours, theirs))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _short(value: Any, n_characters: int = 60) -> str:
    text = json.dumps(value) if isinstance(value, str) else _in_words(value)
    return text if len(text) <= n_characters else text[: n_characters - 1] + "…"


def _in_words(value: Any) -> str:
    """A JSON value, objects without their punctuation."""
    if isinstance(value, dict) and value:
        return ", ".join(f"{key} {_in_words(each)}" for key, each in value.items())
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "; ".join(map(_in_words, value))
    return value if isinstance(value, str) else json.dumps(value)
