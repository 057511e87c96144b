"""The benchmarks of remote stores run to their end; their numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TITLES = {
    "bench_remote.py": ("Ranges from moto", "Whole files", "Ranges from a server that only sends", "Random samples"),
    "bench_shared.py": ("Training from a server 20 ms away",),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", TITLES)
def test_quick_run_prints_every_table(tmp_path: Path, script: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for title in TITLES[script]:
        assert done.stdout.count(f"### {title}") == 1
    assert not list(tmp_path.iterdir()), "the benchmark left files behind"
