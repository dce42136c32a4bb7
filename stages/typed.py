"""Convert JSON to a dataclass, and check the type of each field."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stages.errors import InputError

T = TypeVar("T")


def typed(cls: type[T], values: Mapping[str, Any], what: str) -> T:  # Any: whatever JSON can hold
    """The dataclass with these values; raises ``InputError`` for the first invalid one."""
    try:
        found: T = _adapter_of(cls).validate_python(dict(values))  # type: ignore[arg-type]  # a class has a hash
        return found
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{what}: {key + ': ' if key else ''}{first['msg']}") from error


@cache
def _adapter_of(cls: Any) -> TypeAdapter[Any]:  # Any: a dataclass
    return TypeAdapter(cls)


def known(values: object, what: str) -> dict[str, Any]:  # Any: whatever JSON can hold
    """The values of a JSON object that are not null; raises ``InputError`` for anything else."""
    if not isinstance(values, Mapping):
        raise InputError(f"{what} is not in our format: expected names and values")
    return {key: value for key, value in values.items() if value is not None}
