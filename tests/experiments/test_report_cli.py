"""refavs-report: the files it writes, their upload to MLflow, and its errors for bad input."""

import csv
import errno
import http.server
import json
import re
import sqlite3
import sys
import threading
import types
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.report.cli import main, write
from experiments.report.drawing import Drawing
from experiments.sweep.driver import run_sweep
from experiments.tracking.client import default_tracking_uri
from experiments.tracking.database import first_use
from tests.experiments.small_store import make_store
from tests.experiments.small_sweep import write_facts, write_trial
from tests.experiments.test_sweep import InProcess, grid_of

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of MLflow and what it imports


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reports whose figures nobody looks at."""
    monkeypatch.setattr("experiments.report.figures.report_figures", lambda report: [])


def test_report_of_a_sweep_lies_beside_it_and_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_u": 1, "test_n": 1})
    runner = types.SimpleNamespace(run_trials=InProcess().run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    png = Drawing.png
    monkeypatch.setattr(Drawing, "png", lambda drawing: png(drawing, 40))
    out = tmp_path / "tiny"
    run_sweep(grid_of("full", "no_text"), store, out)
    arguments = [str(out), "--latex", "--protocol", "released", "--protocol", "canonical", "--published"]
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    texts = ("report.html", "report.md", "report.csv", "report.tex")
    assert [line for line in printed.out.splitlines() if line.startswith(str(out))] == [
        str(out / "report" / name) for name in texts
    ]
    assert printed.out.startswith("RANDOM FEATURES: ") and "report: 2/2 runs" in printed.err

    client = MlflowClient(default_tracking_uri(out))
    run_id = json.loads((out / "sweep.json").read_text())["run_id"]
    assert client.get_run(run_id).data.tags["refavs.kind"] == "sweep"
    assert {f"report/{name}" for name in texts} < {item.path for item in client.list_artifacts(run_id, "report")}
    found = Path(client.download_artifacts(run_id, "report", str(tmp_path)))
    for path in (out / "report").rglob("*.*"):
        assert (found / path.relative_to(out / "report")).read_bytes() == path.read_bytes()
    figures = {path.name for path in (out / "report" / "figures").iterdir()}
    assert {"ablations.svg", "ablations.png", "curves.svg", "dimensions.png", "calibration.svg"} <= figures

    markdown = (out / "report" / "report.md").read_text()
    assert "protocol released" in markdown and "| text only (control) |" in markdown and "Null" in markdown
    assert re.search(r"\n- store: .*store\n", markdown) and "Constant predictions are missing" not in markdown
    lines = list(csv.DictReader((out / "report" / "report.csv").read_text().splitlines()))
    value = next(line for line in lines if line["table"] == "table3-canonical" and line["row"] == "full")
    (path,) = [path for path in out.glob("trials/*/config.json") if json.loads(path.read_text())["name"] == "full"]
    metrics = json.loads((path.parent / "result.json").read_text())["metrics"]
    assert float(value["value"]) == pytest.approx(100 * metrics["test_s/J"]) and "random features" in value["mark"]

    before = {path: path.read_bytes() for path in (out / "report").rglob("*.*")}
    assert main(arguments) == 0
    assert {path: path.read_bytes() for path in (out / "report").rglob("*.*")} == before, "the same bytes"


def test_report_is_written_where_mlflow_is_not_and_says_so(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts(tmp_path / "s")
    write_trial(tmp_path / "s", "full")
    assert main([str(tmp_path / "s"), "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr()
    assert "the report is not in MLflow: " in printed.err and "does not say which run of MLflow it is" in printed.err
    assert (tmp_path / "out" / "report.html").is_file() and not (tmp_path / "out" / "report.tex").exists()
    assert not (tmp_path / "s" / "report").exists()
    write_facts(tmp_path / "s", run_id="0")
    assert main([str(tmp_path / "s")]) == 3
    assert f"there is no MLflow database {tmp_path}/mlflow.db" in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists() and (tmp_path / "s" / "report" / "report.csv").is_file()


def test_addresses_in_a_sweep_from_elsewhere_are_not_obeyed(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_error(404)

        do_POST = do_PUT = do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sqlite3.connect(tmp_path / "photos.db") as connection:
        connection.execute("create table photos (name text)")
    before = (tmp_path / "photos.db").read_bytes()
    address = f"http://127.0.0.1:{server.server_port}"
    write_trial(tmp_path / "s" / "s", "full")
    try:
        for named in (address, f"sqlite:///{tmp_path}/photos.db"):
            write_facts(tmp_path / "s" / "s", tracking_uri=named, run_id="0" * 32, store=f"{address}/store")
            assert main([str(tmp_path / "s" / "s")]) == 3
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refavs-report: ")]
            assert f"names the MLflow {named}, outside of that folder" in line and "give --tracking-uri" in line
    finally:
        server.shutdown()
        server.server_close()
    assert not heard and (tmp_path / "photos.db").read_bytes() == before
    page = (tmp_path / "s" / "s" / "report" / "report.html").read_text()
    assert f"give it by --store {address}/store where you trust it" in page


def test_report_in_a_sweep_from_elsewhere_that_leads_out_of_it_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts(tmp_path / "s")
    write_trial(tmp_path / "s", "full")
    (tmp_path / "home").mkdir()
    (tmp_path / "s" / "report").symlink_to(tmp_path / "home")
    assert main([str(tmp_path / "s")]) == 2
    assert "outside of the sweep's folder; give the folder for the report by --out" in capsys.readouterr().err
    assert not list((tmp_path / "home").iterdir())


def test_artifacts_that_cannot_be_written_are_one_line(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with first_use(uri):
        client = MlflowClient(uri)
    (tmp_path / "gone").write_text("a sweep that was moved: its artifacts' folder is none any more")
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "gone" / "artifacts").as_uri())
    write_facts(tmp_path / "s", tracking_uri=uri, run_id=client.create_run(experiment).info.run_id)
    write_trial(tmp_path / "s", "full")
    for given, told in (
        (["--tracking-uri", uri], f"its artifacts at file://{tmp_path}/gone/artifacts/"),
        ([], f"its artifacts would go to file://{tmp_path}/gone/artifacts/"),
    ):
        assert main([str(tmp_path / "s"), *given]) == 3
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refavs-report: ")]
        assert len(lines) == 1 and told in lines[0]


def test_report_that_cannot_be_written_to_its_end_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"report.html": b"A", "report.csv": b"A", "figures/a.svg": b"A"}
    write(tmp_path / "out", first)
    (tmp_path / "out" / "notes.txt").write_bytes(b"mine")

    def full(path: Path, data: bytes) -> None:
        if path.name == "a.svg":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr("refavs.files.atomic.write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "out", dict.fromkeys(first, b"B"))
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
             for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert found == {**first, "notes.txt": b"mine"}
    staging = tmp_path / "out" / ".refavs.partial"  # what a kill leaves
    staging.mkdir()
    (staging / "report.csv").write_bytes(b"half")
    write(tmp_path / "out", dict.fromkeys(first, b"B"))
    assert (tmp_path / "out" / "report.csv").read_bytes() == b"B" and not staging.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder (it has no sweep.json and no trials); give the folder that"),
        (["empty"], "empty is not a sweep's folder"),
        (["new"], "the sweep new has no finished run (1 trials without a result); run its refavs-sweep command again"),
        (["bare"], "has no statistics (statistics.parquet is missing); evaluate the run again"),
        (["damaged"], "cannot be used ("),
        (["good", "other"], "cannot be compared in one table; report the sweeps one by one, or pass --mixed"),
        (["good", "--protocol", "canonic"], "no protocol 'canonic'; did you mean 'canonical'?"),
        (["good", "--reference", "ful"], "--reference 'ful' is not a row; did you mean 'full'?"),
        (["good", "--out", "file"], "--out file is a file; name a folder, or one that does not exist"),
    ],
)
def test_command_refuses_bad_input_on_one_line(
    arguments: list[str], message: str, sweeps: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(sweeps)
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("report: ")]
    assert len(lines) == 1 and lines[0].startswith("refavs-report: ") and message in lines[0]
    assert not list(sweeps.rglob("report*"))


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    write_trial(folder / "new", "full", quality=None, state="running")
    write_trial(folder / "bare", "full", quality=None)
    (write_trial(folder / "damaged", "full", quality=None) / "statistics.parquet").write_bytes(b"PAR1" * 100)
    for name, store in (("good", "fingerprint-of-tests"), ("other", "another-store")):
        write_facts(folder / name, fingerprint=store)
        write_trial(folder / name, "full", store=store)
    return folder


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "refavs-report runs/table4 " in printed and "(default: None)" not in printed and "canonical" in printed
