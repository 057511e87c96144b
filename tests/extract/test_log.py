"""The log of a run as JSON lines."""

import json
from pathlib import Path

import pytest

from extract.pipeline.log import RunLog
from extract.pipeline.turns import JOB_STAGES
from extract.pipeline.worker import JobResult


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(**facts: object) -> JobResult:
    stages = dict.fromkeys(JOB_STAGES, 0.0) | {"encode": 2.0, "write": 0.5}
    return JobResult(**{"kind": "clips", "num_done": 4, "num_bytes": 100, "seconds": 4.0, "stages_s": stages,
                        "worker": "node:1"} | facts)  # fmt: skip


def test_log_has_counts_and_times_of_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("extract.pipeline.log.time.monotonic", lambda: clock[0])
    path = tmp_path / "extract.jsonl"
    with RunLog(path, {"clips": 9, "text": 3}) as log:
        clock[0] += 4
        log.add(result(encoded={"swin": (40, 1.5), "vggish": (4, 0.5)}))
        log.add(None)
        assert [line["event"] for line in lines(path)] == ["start"]
        clock[0] += 4
        log.add(result(failures={"b": "damaged"}, num_done=3, encoded={"swin": (30, 0.5)}))
        log.add(JobResult(kind="text", failures={"t": "its worker process died 3 times"}))
        log.note("worker node:1 is lost")
        assert log.summary()["encoder_utilisation"] == 0.5 and log.brief() == "0.88 clips/s, encoders 50% busy"
    events = [line["event"] for line in lines(path)]
    assert events == ["start", "failure", "progress", "failure", "note", "end"]
    end = lines(path)[-1]
    assert end["done"] == {"clips": 7, "text": 0} and end["total"] == {"clips": 9, "text": 3}
    assert end["failures"] == 2 and end["bytes"] == 200 and end["workers"] == 1 and end["error"] is None
    assert end["stages_s"]["encode"] == 4 and end["elapsed_s"] == 8 and end["clips_per_s"] == 0.875
    assert end["encoders"] == {"swin": {"inputs": 70, "seconds": 2.0, "inputs_per_s": 35.0},
                               "vggish": {"inputs": 4, "seconds": 0.5, "inputs_per_s": 8.0}}  # fmt: skip
    assert lines(path)[1] | {"time": ""} == {
        "time": "", "event": "failure", "kind": "clips", "name": "b", "reason": "damaged"
    }


def test_log_is_appended_to_that_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "extract.jsonl"
    with pytest.raises(KeyboardInterrupt), RunLog(path) as log:
        log.add(result(error=OSError("gone"), trace="Traceback"))
        raise KeyboardInterrupt
    with RunLog(path):
        pass
    assert [line["event"] for line in lines(path)] == ["start", "note", "end", "start", "end"]
    assert lines(path)[2]["error"] == "KeyboardInterrupt" and "gone" in lines(path)[1]["text"]
    assert lines(path)[2]["broken_jobs"] == 1


def test_log_without_a_file_adds_up_as_well() -> None:
    with RunLog(None, {"clips": 4}) as log:
        log.add(result())
    assert log.summary()["done"] == {"clips": 4} and log.summary()["encoder_utilisation"] == 0.5
