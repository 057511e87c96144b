"""How many processors this process may use, and how its threads wait for one another."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from refavs.machine.control_groups import PROC, groups_of, words_of

# Of torch's OpenMP library (libgomp), which reads it when it is loaded. A thread that waits for another one spins for
# milliseconds otherwise, and beside other work the other one has no processor meanwhile: two threads of an encoder were
# 10 to 30 times slower.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def num_processors(proc: Path = PROC) -> int:
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
    for folder in groups_of("cpu", proc):
        # Version 2 has quota and period in one file, and "max" for no limit; version 1 has a file for each, and -1.
        both = words_of(folder / "cpu.max") or [
            *words_of(folder / "cpu.cfs_quota_us"), *words_of(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(both) == 2 and both[0].isdigit() and both[1].isdigit():
            yield int(both[0]) / int(both[1])
