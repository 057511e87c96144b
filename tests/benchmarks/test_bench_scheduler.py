"""The benchmark of the scheduler runs to its end, except the parts that need Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_scheduler.py")


@pytest.mark.slow
def test_quick_run_prints_its_tables(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--no-ray", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "### Plan and schedule, 64 simulated workers" in done.stdout
    assert "### Commit records of preset base" in done.stdout
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
