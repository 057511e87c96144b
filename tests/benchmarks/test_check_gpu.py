"""The GPU checks also run on a CPU, and a failing check becomes a row of the table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("check_gpu.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--folder", str(tmp_path), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


def cells_of(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_every_check_runs_on_a_processor(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = cells_of(done.stdout)
    assert found["peak memory, GiB"] == ["n/a", "n/a", "n/a", "ok"], "no number where there is no GPU"
    assert float(found["ms a step"][0]) > 0 and float(found["visual encoder, frames/s"][0]) > 0
    assert found["a trial that was stopped and went on, difference to an undisturbed one"][0] == "0.0e+00"
    assert not list(tmp_path.iterdir()), "the checks left files behind"


def test_failing_check_becomes_a_row_and_the_others_still_run(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    done = run(tmp_path, "--preset", "nowhere", "--only", "environment", "scores", "--out", str(out))
    assert done.returncode == 1
    found = cells_of(out.read_text("utf-8"))
    for check in ("environment", "scores"):
        assert found[check][-1].startswith("FAIL: refavs.errors.ConfigError: unknown preset 'nowhere'")
