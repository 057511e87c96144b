"""Every command on folders, trials, sentences and stores with names that a terminal or a markup would obey."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main as sweep
from experiments.predict.cli import main as predict
from experiments.report.cli import main as report
from extract.cli import main as extract
from extract.store_cli import main as store_command
from refavs.store import FeatureStore
from refavs.synthetic.cli import main as synth
from tests.experiments.small_store import AUDIO, STREAMS, make_store
from tests.experiments.small_sweep import write_facts, write_trial
from tests.extract.command import in_this_process, run_with

# Warnings are those of MLflow and what it imports.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("small_networks")]

NASTY = "lr[low][/old]\x1b[2J\a\nrefavs-store: all is well\u202e"
SHOWN = "\\x1b[2J\\x07\\nrefavs-store: all is well\\u202e"
OBEYED = set("\x1b\a\r\u202e")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in whose whole name there is a closing tag."""
    path = tmp_path_factory.mktemp("names") / NASTY.split("/")[0] / NASTY.split("/")[1]
    path.mkdir(parents=True)
    return path


@pytest.fixture(scope="module")
def store(folder: Path) -> FeatureStore:
    """Says of itself and its encoders what nobody should obey."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STREAMS[AUDIO].fingerprint, NASTY, NASTY)
        return make_store(folder / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command, whose output must name things without a code or a line of their own."""

    monkeypatch.setenv("COLUMNS", "500")

    def run(command: Callable[..., int], *arguments: object, status: int = 0) -> str:
        assert command([str(argument) for argument in arguments]) == status
        printed = "".join(capsys.readouterr())
        assert not OBEYED & set(printed) and not any(
            line.startswith("refavs-store: all is well") for line in printed.splitlines()
        ), printed
        return printed

    return run


def test_commands_of_a_store(folder: Path, store: FeatureStore, shown: Callable[..., str]) -> None:
    assert f"lr[low][/old]{SHOWN}" in shown(store_command, "info", store.location)
    assert SHOWN in shown(store_command, "verify", store.location)
    assert SHOWN in shown(store_command, "export", store.location, folder / "out.h5")
    assert SHOWN in shown(store_command, "import", folder / "out.h5", folder / "again")
    shard = max((folder / "again" / "clips").rglob("*"), key=lambda path: path.stat().st_size)
    shard.write_bytes(b"damaged" + shard.read_bytes()[7:])
    assert SHOWN in shown(store_command, "verify", folder / "again", status=3)
    assert SHOWN in shown(store_command, "repair", folder / "again", status=2)
    assert SHOWN.split("\\n")[0] in shown(store_command, "info", folder / "none", status=2)


def test_sweep_whose_files_have_such_names(
    tmp_path: Path, shown: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts(tmp_path, grid=NASTY)
    folder = write_trial(tmp_path, NASTY, state="failed", quality=None)
    (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": NASTY}))
    printed = shown(sweep, "status", tmp_path)
    assert f"sweep lr[low][/old]{SHOWN} in" in printed and f"failed: lr[low][/old]{SHOWN}, seed 0: lr[low]" in printed
    shown(sweep, NASTY, "--store", tmp_path, status=2)
    shown(report, tmp_path, "--reference", NASTY, status=2)
    (tmp_path / "sweep.json").write_text(NASTY)
    shown(sweep, "status", tmp_path, status=2)
    for command, option in ((sweep, "--fuse"), (report, NASTY)):
        with contextlib.suppress(SystemExit):  # of argparse
            command([str(tmp_path), option, NASTY])
        assert not OBEYED & set("".join(capsys.readouterr()))


def test_commands_that_make_and_read_sources(
    folder: Path, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (synth, folder / "bench", "--clips", 8, "--size", 64, "--videos", "none")
    assert SHOWN in shown(*made) and "already complete" in shown(*made)
    (folder / "videos").mkdir()
    tiny = ("--preset", "tiny", "--weights", "random")
    shown(extract, folder / "videos", folder / "fresh", *tiny, status=2)
    (folder / "videos" / "no.mp4").write_bytes(b"no film")
    run_with(monkeypatch, in_this_process)
    assert SHOWN in shown(extract, folder / "videos", folder / "fresh", *tiny, status=3)
    assert SHOWN in shown(extract, "--check-weights", folder, status=2)
    titles = shown(extract, folder / "bench", folder / "new", *tiny, "--dry-run")  # as wide as their tables
    assert "lr[low][/old]" in "".join(titles.split())
    assert SHOWN.split("\\n")[0] in shown(predict, folder / "none.mp4", NASTY, "--run", folder / "none", status=2)
