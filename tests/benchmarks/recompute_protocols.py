"""Recomputes all protocols from one file of statistics; prints seconds, the peak memory in bytes, and a few values.

Run by `bench_metrics.py` in a process of its own.
"""

import sys
import time
from pathlib import Path

from refavs.metrics import PROTOCOLS, expression_results, grouped, protocol_values, statistics_blocks


def main(path: str) -> None:
    """Reads, scores and groups; importing does not count as time, but does as memory."""
    started = time.perf_counter()
    results = expression_results(statistics_blocks(Path(path)))
    groups = grouped(results.expressions, ["split"]) | grouped(results.expressions, ["split", "dimension"])
    found = {
        protocol: {name: protocol_values(results, protocol, rows) for name, rows in groups.items()}
        for protocol in PROTOCOLS
    }
    seconds = time.perf_counter() - started
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    values = {name: values["test_s"] for name, values in found.items() if "test_s" in values}
    print(seconds, int(line.split()[1]) * 1024)
    for name, scores in values.items():
        print(f"- {name}: {', '.join(f'{measure} {value:.4f}' for measure, value in scores.items())}")


if __name__ == "__main__":
    main(sys.argv[1])
