"""Resource usage of a training process over time, for MLflow's page of system metrics."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch

MEBI = 2**20
INTERVAL_S = 10.0  # as MLflow's own monitor
MOST_SAMPLES = 100  # of an epoch; in a longer one they lie further apart


class Usage:
    """Samples at steps, and at the end of each epoch; trials that train together in a process get the same values.

    Args:
        device: measured too if it is a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()
        self._samples: list[dict[str, Any]] = []
        self._interval_s = INTERVAL_S

    def sample(self) -> None:
        """Takes a sample if the last one is old enough; call it after each step."""
        if time.monotonic() - self._wall_s < self._interval_s:
            return
        self._samples.append(self._measured())
        if len(self._samples) == MOST_SAMPLES:
            self._samples, self._interval_s = self._samples[1::2], 2 * self._interval_s

    def take(self) -> list[dict[str, Any]]:
        """The samples of an epoch that has just ended, each with its time and values by MLflow's names."""
        found = [*self._samples, self._measured()]
        self._samples, self._interval_s = [], INTERVAL_S
        return found

    def _measured(self) -> dict[str, Any]:
        """CPU (percent of one processor since the last sample) and memory of this process, and use of its GPU."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        cpu = 100 * (cpu_s - self._cpu_s) / max(wall_s - self._wall_s, 1e-9)
        found = {"time_ms": int(time.time() * 1000), "cpu_utilization_percentage": cpu}
        self._wall_s, self._cpu_s = wall_s, cpu_s
        memory = resident_bytes()
        if memory is not None:
            found["system_memory_usage_megabytes"] = memory / MEBI
        if self.device.type == "cuda":
            found["gpu_0_memory_usage_megabytes"] = torch.cuda.memory_reserved(self.device) / MEBI
            with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # nvidia-ml-py is not installed, or fails
                found["gpu_0_utilization_percentage"] = torch.cuda.utilization(self.device)
        return found


def resident_bytes() -> int | None:
    """Resident memory of this process; None if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
