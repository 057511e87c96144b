"""Videos with damaged bytes are read or refused, and never bring the process down or hold it up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_SECONDS = 5.0  # of processor time for one file; measured: at most 0.5 s


@pytest.mark.process
@pytest.mark.parametrize("count", [12, pytest.param(600, marks=pytest.mark.faults)])
def test_mutated_videos_are_read_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("mutated_media.py")), str(count),
         str(count), str(tmp_path)], capture_output=True, text=True, cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{count} mutated videos: {found['verdicts']}, the slowest {found['slowest_s']:.2f} s")
    assert sum(found["verdicts"].values()) == count and found["slowest_s"] < MOST_SECONDS
