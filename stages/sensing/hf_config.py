"""Check the JSON files of a Hugging Face model before transformers reads them.

Some of their settings make transformers or timm run code of other repositories, read other files,
download, or build without end.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.errors import InputError

MAX_BYTES, MAX_NUMBER, MAX_LAYERS = 2**24, 1_000_000, 1_000

_PLAIN_ATTENTION = (None, "eager", "sdpa")


def check_config(file: Path, network: str) -> None:
    """Check a ``config.json`` or ``preprocessor_config.json``.

    Raises:
        InputError: it is not a JSON object, or has a setting that is not accepted.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES:,} bytes")
        facts = json.loads(file.read_bytes())
        if not isinstance(facts, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"network {network}: its {file.name} cannot be read as JSON ({error})"
        ) from error
    for name, value in _settings(facts):
        if reason := _reason_against(name, value):
            raise InputError(
                f"network {network}: its {file.name} has {name!r}, {reason}: remove it, or load "
                "the network in a file of your own, file.py:factory"
            )


def _settings(facts: Any) -> Iterator[tuple[str, Any]]:  # Any: JSON
    """Yield the name and value of every setting, also of those within others."""
    if isinstance(facts, dict):
        yield from facts.items()
    values = facts.values() if isinstance(facts, dict) else facts
    for value in values:
        if isinstance(value, dict | list):
            yield from _settings(value)


def _reason_against(name: str, value: Any) -> str:  # Any: JSON
    """Why a setting is not accepted; empty if it is."""
    if _REFUSED.get(name, _accepts)(value):
        return "which may read other files, or run or download code of others"
    most = MAX_LAYERS if re.search("layers|depth|num_blocks", name) else MAX_NUMBER
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(each, int) and each > most for each in numbers):
        return f"expected at most {most:,}"
    return ""


def _accepts(_: Any) -> bool:  # Any: JSON
    return False


def _is_given(value: Any) -> bool:  # Any: JSON
    return bool(value)


def _is_other_attention(value: Any) -> bool:  # Any: JSON
    return value not in _PLAIN_ATTENTION


def _is_place(value: Any) -> bool:  # Any: JSON
    return not re.fullmatch("[A-Za-z0-9_.]+", str(value))


_REFUSED: Mapping[str, Callable[[Any], bool]] = {
    "_attn_implementation": _is_other_attention,  # may be a repository with a compiled kernel
    "_attn_implementation_internal": _is_other_attention,
    "_experts_implementation": _is_other_attention,
    "_experts_implementation_internal": _is_other_attention,
    "attn_implementation": _is_other_attention,
    "experts_implementation": _is_other_attention,
    "architecture": _is_place,  # timm's name of a network may be that of a folder or repository
    "backbone": _is_given,
    "backbone_config": _is_given,
    "cache_dir": _is_given,
    "checkpoint_path": _is_given,
    "configuration_files": _is_given,  # other files in place of this one
    "pretrained": _is_given,
    "pretrained_cfg_overlay": _is_given,
}
