"""How many processors this process may use, and how its threads wait for one another."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

# Of torch's OpenMP library (libgomp), which reads it when it is loaded. A thread that waits for another one spins for
# milliseconds otherwise, and beside other work the other one has no processor meanwhile: two threads of an encoder were
# 10 to 30 times slower.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def num_processors(proc: Path = Path("/proc/self")) -> int:
    """Processors that this process is bound to, or fewer where a control group limits it to less time than theirs.

    Args:
        proc: what the kernel says of the process.
    """
    bound = len(os.sched_getaffinity(0))
    return max(1, min([bound, *(math.ceil(quota) for quota in _quotas(proc))]))


def share_processors() -> None:
    """Prepares a command that computes in its own process; to be called before torch is imported.

    torch takes as many threads as the machine has processors, whatever the control group's limit, and lets them spin.
    """
    for name, value in {**PASSIVE_WAITING, "OMP_NUM_THREADS": str(num_processors())}.items():
        os.environ.setdefault(name, value)


def _quotas(proc: Path) -> Iterator[float]:
    """Processor seconds a second that the process's control groups allow, of those that have a limit."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:  # a kernel without control groups
        return
    for _, controllers, path in groups:
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            if (kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options) or (
                kind == "cgroup2" and not controllers
            ):
                yield from _quotas_above(Path(mount[4]), _below(path, root=mount[3]))


def _below(path: str, root: str) -> Path:
    """Where a group lies under a mount that shows the groups below `root`; a container may see its own alone."""
    return Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()


def _quotas_above(top: Path, group: Path) -> Iterator[float]:
    """Limits of a group and of all that it lies in."""
    for folder in (top / group, *(top / parent for parent in group.parents)):
        # Version 2 has quota and period in one file, and "max" for no limit; version 1 has a file for each, and -1.
        both = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(both) == 2 and both[0].isdigit() and both[1].isdigit():
            yield int(both[0]) / int(both[1])


def _words(file: Path) -> list[str]:
    """The words of a file; none where there is no such file."""
    try:
        return file.read_text().split()
    except OSError:
        return []
