"""Code of the user's own: it runs where they have named it on a command line, and nowhere else.

A network may be ``file.py:factory``. Cards of models, journals and recipes name networks too, and
may come from someone else. So what is named with ``--network`` is written down, in a file of the
user's that lies in no store, and what a file names must stand there.
"""

import importlib.util
import os
from contextlib import suppress
from pathlib import Path

from stages.errors import InputError
from store.disk import spelled_out

TORCHVISION = "torchvision:"
"""Before the names of networks that torchvision ships."""

REPLAYED = "INTRO_PIPE_REPLAYED"
"""Set where a journal gives the command: then nobody has named anything."""

_named_here: set[str] = set()
"""What this process was told, for homes that cannot be written."""


def is_code(network: str) -> bool:
    """Whether building the network runs code that does not come with intro-pipe or torchvision."""
    return ":" in network and not network.startswith(TORCHVISION)


def trust(network: str) -> None:
    """Write down that the user names this network; what is known already is left alone.

    Raises:
        InputError: a journal gives this command, and the user has not named it before.
    """
    if os.environ.get(REPLAYED):
        require_trust(network, "the journal")
    if not is_code(network):
        return
    line = _line_of(network)
    _named_here.add(line)
    if line in _trusted():
        return
    place = trusted_file()
    with suppress(OSError):  # what cannot be remembered is to be named again
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def require_trust(network: str, named_by: str) -> None:
    """Let a file name a network; to be asked before anything of it is imported.

    Raises:
        InputError: it is code that the user has not named yet.
    """
    if is_code(network) and _line_of(network) not in _named_here | _trusted():
        raise InputError(
            f"{named_by} would run code, {network}, that you have not named yet: read it, then "
            "name it once yourself with --network (extract or train-sensing, --dry-run will do)"
        )


def trusted_file() -> Path:
    """Where it is written down, a line for each factory."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return spelled_out(Path(home, "intro-pipe", "trusted-code"))


def _trusted() -> set[str]:
    try:
        return set(trusted_file().read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def _line_of(network: str) -> str:
    """The network with the place of its code: a name alone means another module in each folder."""
    from stages.sensing.build import located

    place = located(network)
    if place != network or Path(place.rpartition(":")[0]).is_absolute():
        return place
    package = network.partition(":")[0].partition(".")[0]
    here = Path.cwd() / package
    for path in (here / "__init__.py", here.with_suffix(".py")):  # looked for first, see build
        if path.is_file():
            return f"{path}:{network}"
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return f"{spec.origin if spec else ''}:{network}"
