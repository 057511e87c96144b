"""The benchmark of sweeps runs to its end; its numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_sweep.py")


@pytest.mark.slow
def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    titles = ("2 trials of one epoch", "8 trials that differ in beta", "50 metrics logged",
              "The same command on 4 finished trials")  # fmt: skip
    for title in titles:
        assert done.stdout.count(f"### {title}") == 1
    assert "a TorchTrainer of one worker" in done.stdout and "MLflow server, HTTP" in done.stdout
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
