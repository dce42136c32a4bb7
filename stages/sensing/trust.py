"""The user's own code runs only if the user has named it on a command line.

A network may be ``file.py:factory``. Cards of models, journals and recipes also name networks, and
may come from someone else. Therefore the networks that the user names with ``--network`` are
recorded, with the SHA-256 of their files, in a list outside any store; networks named by a file
must be on that list.
"""

import hashlib
import importlib.util
import os
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path

from stages.errors import InputError
from stages.sensing.hidden_layers import plain_name
from store.disk import spelled_out

TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's networks."""

TIMM = "timm:"
"""Prefix of the names of timm's networks."""

HF = "hf:"
"""Prefix of networks of transformers: a folder, or an ID on the hub of Hugging Face."""

LIBRARIES = (TORCHVISION, TIMM, HF)
"""Prefixes of networks whose code is part of an installed library."""

_named_here: set[str] = set()
"""Networks that this process was given, in case the home directory cannot be written."""


def is_code(network: str) -> bool:
    """Whether building the network runs code that is not part of intro-pipe or its libraries."""
    return ":" in network and not network.startswith(LIBRARIES)


def trust(network: str) -> None:
    """Record that the user names this network, with the current content of its file."""
    line = _line_of(network) if is_code(network) else ""
    if not line or line in _named_here:
        return
    _named_here.add(line)
    place = trusted_file()
    with suppress(OSError):  # if it cannot be recorded, it must be named again
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _problem_of(place) and line not in _trusted():
            descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{line}\n")


def require_trust(network: str, named_by: str) -> None:
    """Allow a file to name a network; called before anything of it is imported.

    Raises:
        InputError: it is code that the user has not named yet, that was edited since, or that is
            not found.
    """
    if not is_code(network):
        return
    line, known = _line_of(network), _named_here | _trusted()
    if not line:
        raise InputError(
            f"{named_by} would run code, {network}, for which no readable file is found: check the "
            "path of the file, or the name of the module"
        )
    if line in known:
        return
    place = line.rpartition(" ")[0]
    is_other = any(place in (each, each.rpartition(" ")[0]) for each in known)
    why = "that you have not named yet"
    if is_other:
        why = "which was edited after you named it, or was remembered by an older intro-pipe"
    if problem := _problem_of(trusted_file()):
        why += f" ({problem})"
    raise InputError(
        f"{named_by} would run code, {network}, {why}: review it, then "
        "name it yourself once with --network (import-model, extract or train-sensing; --dry-run "
        "is enough)"
    )


def trusted_file() -> Path:
    """The list: one line per factory, with its file and the SHA-256 of the file."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return spelled_out(Path(home, "intro-pipe", "trusted-code"))


def _trusted() -> set[str]:
    """The lines of the list; empty if others may have written them."""
    place = trusted_file()
    try:
        return set() if _problem_of(place) else set(place.read_text("utf-8").split("\n"))
    except (OSError, UnicodeDecodeError):
        return set()


def _problem_of(place: Path) -> str:
    """Why the list is not trusted; empty if it belongs to the user or does not exist."""
    for path in (place.parent, place):
        try:
            facts = path.stat()
        except OSError:
            continue
        if facts.st_uid not in (os.geteuid(), 0):
            return f"{path} belongs to another user and is ignored"
        if facts.st_mode & 0o022:
            return f"others can write to {path}, so it is ignored: chmod go-w {path}"
    return ""


def _line_of(network: str) -> str:
    """The network with its file and the SHA-256 of the file; empty if no file is found.

    A name alone could mean a different module in each folder, and another network after an edit.
    """
    network = plain_name(network)
    target, _, factory = network.rpartition(":")
    is_file = target.endswith(".py")
    source = spelled_out(target).resolve() if is_file else _source_of(target)
    try:
        content = source.read_bytes() if source else b""
    except OSError:
        return ""
    line = f"{source}:{factory if is_file else network} {hashlib.sha256(content).hexdigest()}"
    return line if source and "\n" not in line else ""


def _source_of(module: str) -> Path | None:
    """The file that an import would run; nothing is run here."""
    name, *rest = module.split(".")
    try:
        # The working directory comes first, see build; a finder of an editable install last.
        places = [str(Path.cwd()), *sys.path]
        spec = PathFinder.find_spec(name, places) or importlib.util.find_spec(name)
        for part in rest:
            inside = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(part, list(inside)) if inside else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None
