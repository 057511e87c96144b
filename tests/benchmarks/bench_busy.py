"""Times both commands on a busy machine (one busy loop per processor) and on a quiet one.

Prints a Markdown table of wall times of whole commands, Ray's start included, all from one run: with Ray as the
commands start it, and with Ray's own settings (workers at nice 15, threads that spin, large blocks given back). Weights
are random, which takes the same time as real ones. Usage: python tests/benchmarks/bench_busy.py [--quick]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from refavs.machine.processors import num_processors
from refavs.synthetic.write import write_benchmark

sys.path.insert(0, str(Path(__file__).parent))
from machine import GrowingTable, describe

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; {before}from {module} import main; sys.exit(main(sys.argv[1:]))"
RAYS_OWN = "from extract.pipeline import local_ray; local_ray.LOCAL_ENVIRONMENT = local_ray.PATIENCE; "
SETTINGS = {"as they start Ray": "", "Ray's own settings": RAYS_OWN}
BUSY_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the benchmark
OPTIONS = ("--preset", "tiny", "--weights", "random", "--precision", "fp32")
GRID = """
base:
  model: {{num_layers: 1, num_queries: 4, num_heads: 2, visual_downsample: 2, decoder_layers: 0}}
  loss: {{num_points: 0}}
  train: {{epochs: 2, steps_per_epoch: {steps}, batch_size: 8}}
seeds: [0, 1]
"""
# Variables of the shell that would stand in the place of the settings that are compared.
NOT_PASSED_ON = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_worker_niceness", "GLIBC_TUNABLES")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both commands in each state of the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few clips and steps: whether it runs, not how fast")
    parser.add_argument("--clips", type=int, default=48, help="clips of preset tiny to extract")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    num_clips, steps = (3, 2) if args.quick else (args.clips, 100)
    num_loops = 1 if args.quick else num_processors()  # beside more, Ray's own workers starve for minutes
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "ray"]), flush=True)
        write_benchmark(root / "bench", num_clips, seed=0, size=96, videos=False)
        (root / "grid.yaml").write_text(GRID.format(steps=steps))
        seconds_of(root, "extract.cli", [str(root / "bench"), str(root / "store"), *OPTIONS], "")  # warms the disk up
        found = GrowingTable(
            f"{num_clips} clips and 2 trials of {2 * steps} steps beside {num_loops} busy loops",
            ["command", "Ray", "quiet, s", "busy, s", "busy / quiet"],
        )
        commands = {
            "refavs-extract, a worker per processor": (),
            "refavs-extract, one worker with all processors": ("--workers", "1"),
            "refavs-sweep, a trial per processor": None,
        }
        for settings, before in SETTINGS.items():  # Ray's own last: a busy machine starves them for minutes
            for command, options in commands.items():
                quiet = measured(root, options, before)
                with busy_loops(num_loops):
                    busy = measured(root, options, before)
                found.add(command, settings, f"{quiet:.1f}", f"{busy:.1f}", f"{busy / quiet:.2f}")
    return 0


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that do nothing but compute, at the usual nice level."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(root: Path, options: Sequence[str] | None, before: str) -> float:
    """Wall time of an extraction with the options, or of a sweep where there are none, into a folder of its own."""
    with tempfile.TemporaryDirectory(dir=root) as out:
        if options is None:
            arguments = [str(root / "grid.yaml"), "--store", str(root / "store"), "--out", str(Path(out, "sweep"))]
            return seconds_of(root, "experiments.cli", arguments, before)
        arguments = [str(root / "bench"), str(Path(out, "store")), *OPTIONS, *options]
        return seconds_of(root, "extract.cli", arguments, before)


def seconds_of(root: Path, module: str, arguments: Sequence[str], before: str) -> float:
    """Wall time of a command.

    Args:
        before: Python that runs before the command.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, module=module), *arguments],
        capture_output=True, text=True, cwd=root, env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    return seconds


if __name__ == "__main__":
    sys.exit(main())
