"""The benchmark of the page runs to its end; its numbers are not checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_view.py")


@pytest.mark.slow
def test_quick_run_shows_a_clip() -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'refavs[view]'")
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "| 12 " in done.stdout
