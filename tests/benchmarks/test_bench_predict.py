"""The benchmark of predictions runs to its end; its numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_predict.py")


@pytest.mark.slow
def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    root = SCRIPT.parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    for title in ("Latency of a clip of 10 s", "Length, preset tiny"):
        assert done.stdout.count(f"### {title}") == 1
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
