"""Records and files of strangers are one line, within seconds and a bounded memory, or harmless."""

import json
import subprocess
import sys

import pytest


def outcome(*arguments: str) -> dict:
    """What `mutated_records` prints; one process tries all cases, so that its limits hold for each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.mutated_records", *arguments], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.process
@pytest.mark.long
def test_sample_of_odd_records_and_sizes_is_refused_in_one_line() -> None:
    found = outcome("--most", "2")
    assert found["faults"] == []
    assert found["counts"]["declared sizes"]["refused"] > 25
    refused = {command for command, counts in found["counts"].items() if counts.get("refused")}
    assert refused >= {"info", "extract", "status", "report", "predict"}
    assert found["counts"]["verify"]["ok"] > 20  # it ends by naming what is damaged


@pytest.mark.faults
@pytest.mark.parametrize("part", ["store", "sweep", "trial", "declared sizes"])
def test_every_odd_record_is_refused_in_one_line(part: str) -> None:
    found = outcome("--all", "--only", part)
    print(f"{part}: {found['counts']}, at most {found['peak_mb']} MB")
    assert found["faults"] == []
