"""Resource usage of a training process, for MLflow's system metrics, once per epoch."""

import os
import time
from pathlib import Path

import torch

MEBI = 2**20


class Usage:
    """Measures between calls of `take`; trials that train together in a process get the same values.

    Args:
        device: its memory is measured too if it is a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    def take(self) -> dict[str, float]:
        """CPU (percent of one processor) and memory (MB) of this process, by MLflow's names without `system/`."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        found = {"cpu_utilization_percentage": 100 * (cpu_s - self._cpu_s) / max(wall_s - self._wall_s, 1e-9)}
        self._wall_s, self._cpu_s = wall_s, cpu_s
        memory = resident_bytes()
        if memory is not None:
            found["system_memory_usage_megabytes"] = memory / MEBI
        if self.device.type == "cuda":
            found["gpu_memory_usage_megabytes"] = torch.cuda.max_memory_reserved(self.device) / MEBI  # so far
        return found


def resident_bytes() -> int | None:
    """Resident memory of this process; None if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
