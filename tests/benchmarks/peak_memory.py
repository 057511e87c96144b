"""Writes one shard in a process of its own and prints how far its memory rose, in clips; run by `bench_store.py`."""

import sys
from pathlib import Path

import numpy as np
from contenders import STREAM, open_store


def main(folder: str, num_clips: int, side: int) -> float:
    """Writes `num_clips` clips that are made one at a time; returns the rise of the peak resident memory in clips."""
    shape = (10, 256, side, side)
    _write(Path(folder) / "first", (10, 256, 8, 8), 1)  # what every process needs once, code and tables among it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: importing took more than what is left
    start = _status("VmRSS")
    clip_bytes = _write(Path(folder) / "second", shape, num_clips)
    return (_status("VmHWM") - start) / clip_bytes


def _write(root: Path, shape: tuple[int, ...], num_clips: int) -> int:
    writer = open_store(root, shape, num_clips, statistics=True)
    (plan,) = writer.plan(STREAM, [[f"clip{row:05d}" for row in range(num_clips)]])
    assert plan is not None
    num_bytes = 0
    with writer.shard(plan) as shard:
        for row, key in enumerate(plan.keys):
            clip = np.full(shape, row % 7, np.float16)
            shard.write(key, {"maps": clip})
            num_bytes = clip.nbytes
    return num_bytes


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
