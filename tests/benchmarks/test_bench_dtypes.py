"""The benchmark of the stored types runs to its end; its numbers are nobody's concern here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_dtypes.py")


@pytest.mark.slow
def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for title in ("Bytes and writing", "Warm reads, 2", "Cold reads, 2", "Warm reads of a step", "Cold reads of a step",
                  "Parts of writing"):  # fmt: skip
        assert done.stdout.count(f"### {title}") == 1
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
