"""Checks that need a GPU, in under 8 minutes on one; on a CPU it runs the meaningful ones at a smaller size.

Prints a Markdown table for README.md of this folder. Each check runs in a process of its own: one that fails, dies or
hangs is a FAIL row, and the others go on. Exit status: 1 if any failed. Needs no network, no Ray and no MLflow.
Usage: python tests/benchmarks/check_gpu.py [--device auto|cuda|cpu] [--preset base] [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from extract.encoders.presets import preset_named
from refavs.choices import PRECISIONS

sys.path.insert(0, str(Path(__file__).parent))
from gpu_checks import CHECKS
from gpu_place import Place, Row
from machine import describe, table

ROOT = Path(__file__).resolve().parents[2]
MOST_S = 460.0  # of all checks together on a GPU
PATIENCE = 5.0  # how many times that on a processor


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--preset", help="default: base on a GPU, tiny on a processor")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK",
                        help=f"some of {', '.join(CHECKS)}")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # the process of one check
    args = parser.parse_args(argv)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    preset = args.preset or ("base" if device == "cuda" else "tiny")
    if args.rows:
        return run_check(args.only[0], device, preset, args.folder, args.rows)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        about = describe(Path(name), ["torch", "timm", "transformers", "numpy"])
        rows = list(in_processes(args.only, device, preset, Path(name)))
    text = f"{about}\n\n{markdown(rows)}\n"
    print(text, flush=True)
    if args.out:
        args.out.write_text(text, "utf-8")
    return int(any(row.failed for row in rows))


def in_processes(names: Sequence[str], device: str, preset: str, folder: Path) -> Iterator[Row]:
    """The rows of each check."""
    patience = 1.0 if device == "cuda" else PATIENCE
    deadline = time.monotonic() + patience * MOST_S
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for name in names:
        path, most = folder / f"{name}.json", min(patience * CHECKS[name][1], deadline - time.monotonic())
        command = [sys.executable, __file__, "--device", device, "--preset", preset, "--folder", str(folder),
                   "--only", name, "--rows", str(path)]  # fmt: skip
        started, reason = time.monotonic(), ""
        try:
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=max(most, 0.1))
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"not done after {most:.0f} s"
        found = json.loads(path.read_text("utf-8")) if path.exists() else []
        yield from (Row(**row) for row in found)
        if reason:
            yield Row(check=name, failed=reason)
        print(f"{name}: {time.monotonic() - started:.0f} s {reason}", file=sys.stderr, flush=True)


def run_check(name: str, device: str, preset: str, folder: Path, path: Path) -> int:
    """Runs one check in this process; what it found before it failed is kept."""
    rows: list[Row] = []
    try:
        preset_named(preset)
        place = Place(device=torch.device(device), preset=preset, folder=folder)
        rows.extend(CHECKS[name][0](place))
    finally:
        path.write_text(json.dumps([asdict(row) for row in rows]), "utf-8")
    return 0


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        [row.check, *(row.cells.get(name, "") for name in PRECISIONS), f"FAIL: {row.failed}" if row.failed else "ok"]
        for row in rows
    ]
    return table(["check", *PRECISIONS, "result"], [[cell.replace("|", "/") for cell in line] for line in lines])


if __name__ == "__main__":
    sys.exit(main())
