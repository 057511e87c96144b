"""Runs refavs-report on a sweep's folder and prints the peak memory in bytes; `bench_metrics.py` measures the time.

The sweep has no run in MLflow, which the command tells and ends with 3.
"""

import sys
from pathlib import Path

from experiments.report.cli import main

if __name__ == "__main__":
    status = main([*sys.argv[1:], "--latex"])
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024)
    sys.exit(status != 3)
