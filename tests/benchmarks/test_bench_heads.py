"""The benchmark of the heads runs to its end, over every baseline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_heads.py")


@pytest.mark.slow
def test_quick_run_prints_every_table() -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for row in ("| avsbench |", "| avsegformer |", "| gavs |", "| referformer |", "| r2vos |",
                "| simtoken |", "| sums first |", "0 of 33 trials done, 33 to do"):
        assert done.stdout.count(row) == 1
