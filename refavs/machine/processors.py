"""How many processors this process may use, and how its threads wait for each other."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from refavs.machine.control_groups import PROC, groups_of, words_of

# Read by torch's OpenMP library (libgomp) when it loads. By default a waiting thread spins for milliseconds and, on a
# busy machine, keeps the processor from the thread it waits for: two threads of an encoder were 10 to 30 times slower.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def num_processors(proc: Path = PROC) -> int:
    """Processors that this process may use, by its affinity and the limits of its control groups.

    Args:
        proc: the process's folder in /proc.
    """
    bound = len(os.sched_getaffinity(0))
    return max(1, min([bound, *(math.ceil(quota) for quota in _quotas(proc))]))


def share_processors() -> None:
    """Prepares a command that computes in its own process; call it before torch is imported.

    By default torch starts a thread per processor, whatever the control group's limit, and lets them spin.
    """
    for name, value in {**PASSIVE_WAITING, "OMP_NUM_THREADS": str(num_processors())}.items():
        os.environ.setdefault(name, value)


def _quotas(proc: Path) -> Iterator[float]:
    """Processors that each control group with a limit allows."""
    for folder in groups_of("cpu", proc):
        # Version 2: quota and period in one file, "max" for no limit. Version 1: a file for each, -1 for no limit.
        both = words_of(folder / "cpu.max") or [
            *words_of(folder / "cpu.cfs_quota_us"), *words_of(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(both) == 2 and both[0].isdigit() and both[1].isdigit():
            yield int(both[0]) / int(both[1])
