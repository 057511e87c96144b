"""The benchmark of the metrics runs to its end, and its results equal those of the loop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_metrics.py")


@pytest.mark.slow
def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for title in ("J, F and S of 4 frames", "One expression of 10 frames", "All protocols of 304 expressions",
                  "Report of 6 runs (2 rows) x 93 expressions"):  # fmt: skip
        assert done.stdout.count(f"### {title}") == 1
    assert "canonical: J " in done.stdout and "davis: J " in done.stdout
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
