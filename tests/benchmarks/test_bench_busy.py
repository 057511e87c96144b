"""The benchmark of busy machines runs to its end; its numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_busy.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quick_run_prints_every_row(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ("a worker per processor", "one worker with all processors", "a trial per processor"):
        assert done.stdout.count(name) == 2
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
