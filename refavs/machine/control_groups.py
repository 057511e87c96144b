"""The control groups of this process, version 1 and 2."""

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def groups_of(controller: str, proc: Path = PROC) -> Iterator[Path]:
    """The folder of the process's group for a controller, then the folders of its parent groups.

    Args:
        controller: for example `cpu` or `memory`.
        proc: the process's folder in /proc.
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:  # a kernel without control groups
        return
    for _, controllers, path in groups:
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            if (kind == "cgroup" and controller in controllers.split(",") and controller in options) or (
                kind == "cgroup2" and not controllers
            ):
                top, group = Path(mount[4]), _below(path, root=mount[3])
                yield from (top / group, *(top / parent for parent in group.parents))


def words_of(file: Path) -> list[str]:
    """The words of a file; none if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _below(path: str, root: str) -> Path:
    """A group's path below a mount of `root`; a container may see its own group only."""
    return Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
