"""Settings behind the name of a library's network: ``torchvision:vit_b_16,image_size=384``."""

import difflib
import re
from collections.abc import Mapping

from stages.errors import InputError

Setting = bool | int | str


def parsed(network: str, known: Mapping[str, Setting]) -> tuple[str, dict[str, Setting]]:
    """The name of a network, without its library, and its settings.

    Args:
        network: ``library:NAME``, then ``,setting=value`` for each setting.
        known: a value of the right type for each setting that the network has.

    Raises:
        InputError: no such setting, or its value has another type.

    >>> parsed("timm:vit_tiny_patch16_224,img_size=96", {"img_size": 224})
    ('vit_tiny_patch16_224', {'img_size': 96})
    """
    name, *given = network.partition(":")[2].split(",")
    settings: dict[str, Setting] = {}
    for each in given:
        key, _, value = each.partition("=")
        if key not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"network {network}: unknown setting {key!r}; known: {listed}")
        settings[key] = _value(network, key, value, known[key])
    return name, settings


def spelled(library: str, name: str, settings: Mapping[str, Setting]) -> str:
    """The inverse of `parsed`; ``library`` is the prefix of its networks.

    >>> spelled("torchvision:", "googlenet", {"aux_logits": False})
    'torchvision:googlenet,aux_logits=false'
    """
    return library + ",".join([name, *(f"{k}={v}".lower() for k, v in settings.items())])


def _value(network: str, key: str, text: str, like: Setting) -> Setting:
    if isinstance(like, bool):
        expected, is_right = "true or false", text.lower() in ("true", "false")
    elif isinstance(like, int):
        expected, is_right = (
            f"a number, such as {like}",
            bool(re.fullmatch("[1-9][0-9]{0,4}", text)),
        )
    else:
        expected, is_right = f"a word, such as {like}", bool(re.fullmatch("[a-z0-9_]+", text))
    if not is_right:
        raise InputError(f"network {network}: {key} is {text!r}, expected {expected}")
    return text.lower() == "true" if isinstance(like, bool) else type(like)(text)


def unknown(what: str, name: str, known: list[str]) -> str:
    """An error message about an unknown name, with the closest known names."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    shown = known if len(known) <= 20 else [*known[:20], f"and {len(known) - 20} more"]
    return f"unknown {what} {name!r}: {hint}known: {', '.join(shown)}"
