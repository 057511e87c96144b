"""The benchmark of training runs to its end; its numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_train.py")


@pytest.mark.slow
def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for title in ("Training from the store", "Parts of the forward pass", "What each shortcut brings", "Precision"):
        assert done.stdout.count(f"### {title}") == 1
    assert "against the release's way" in done.stdout and "peak memory" in done.stdout
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
