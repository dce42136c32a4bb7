"""The cgroups of this process, which limit its memory and its CPUs."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def groups_of(controller: str, proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version of cgroups (1 or 2) and the folder of each group, innermost first.

    Args:
        controller: "memory" or "cpu".
        proc: ``/proc``; nothing is yielded if it lists no cgroups.
        cgroups: where the groups are mounted.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, top = 2, cgroups
        elif controller in controllers.split(","):
            version, top = 1, cgroups / controller
        else:
            continue
        here = top / path.lstrip("/")
        # In a container the path is often that of the host, and its own group is at the top.
        for group in (here, *here.parents):
            if group.is_relative_to(top):
                yield version, group
