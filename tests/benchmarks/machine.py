"""Description of the machine and tables of results, shared by the benchmarks of this folder."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from refavs.machine.processors import num_processors


def describe(folder: Path, packages: Sequence[str]) -> str:
    """Processor, memory, file system of `folder` and versions, one fact per line."""
    cores = num_processors()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    device, kind = _file_system(folder)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return "\n".join([
        f"- processor: {_processor()}, {cores} cores; {memory:.0f} GiB of memory",
        f"- folder: {kind} on {device}; Linux {platform.release()}",
        f"- Python {platform.python_version()}, {versions}",
        f"- load before the run: {os.getloadavg()[0]:.1f}",
    ])  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    lines = [header, ["-" * 3] * len(header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


class GrowingTable:
    """A Markdown table that is printed row by row, so that a long run shows what it has found."""

    def __init__(self, title: str, header: Sequence[str]) -> None:
        print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}", flush=True)

    def add(self, *cells: str) -> None:
        """Prints a row."""
        print(f"| {' | '.join(cells)} |", flush=True)


def speed(num_bytes: int, seconds: Sequence[float]) -> str:
    """GB/s of the fastest and of the median run."""
    return f"{num_bytes / min(seconds) / 1e9:.2f} / {num_bytes / median(seconds) / 1e9:.2f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times as fast we are, by the fastest and by the median run."""
    return f"{min(theirs) / min(ours):.2f} / {median(theirs) / median(ours):.2f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _file_system(folder: Path) -> tuple[str, str]:
    """Device and type of the mount that holds `folder`."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    resolved = folder.resolve()
    holding = [mount for mount in mounts if resolved.is_relative_to(mount[1])]
    device, _, kind = max(holding, key=lambda mount: len(mount[1]))
    return device, kind
