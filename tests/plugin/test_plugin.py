"""A package with encoders, a head, a layout and a metric: built, installed beside refavs, used by every command."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from refavs.store import FeatureStore

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NAMES = ("extract.cli", "extract.store_cli", "experiments.cli", "experiments.report.cli", "experiments.predict.cli")
GRID = """
description: a head of another package, on two encoders of the sound
base:
  model: {head: agreement, visual: patches-14, text: letters}
  train: {epochs: 1, steps_per_epoch: 2, batch_size: 4, learning_rate: 0.01}
grid:
  model.audio: [quarters-48k, tiny-vggish]
"""

# Runs a command for each line on stdin, so that everything is imported once; `here` leaves Ray out.
DRIVER = """
import contextlib, importlib, json, sys
import pytest
from tests.extract.command import in_this_process, run_with
from tests.support.quick_networks import few_weights
for line in sys.stdin:
    call = json.loads(line)
    with open(call["out"], "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        with pytest.MonkeyPatch.context() as patch:
            few_weights(patch)
            if call["here"]:
                run_with(patch, in_this_process)
            status = importlib.import_module(call["module"]).main(call["arguments"])
    print(int(status), flush=True)
"""

pytestmark = [pytest.mark.ray, pytest.mark.long]


class Environment:
    """An environment of its own with the package's wheel; refavs and what it needs come from the present one."""

    def __init__(self, root: Path) -> None:
        source = shutil.copytree(HERE, root / "source", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        offline = ("--no-deps", "--no-index")
        self.run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", root / "wheels", source)
        self.run(sys.executable, "-m", "venv", "--without-pip", root / "own")
        self.python = root / "own" / "bin" / "python"
        site = next((root / "own").glob("lib/python*/site-packages"))
        (site / "present.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
        (self.wheel,) = (root / "wheels").glob("refavs_example-*.whl")
        zipfile.ZipFile(self.wheel).extractall(site)  # as pip does, whose start takes seconds
        self._out = root / "out"
        self._driver = subprocess.Popen(
            [self.python, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._variables()
        )

    @staticmethod
    def _variables() -> dict[str, str]:
        return os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def run(self, *command: Any) -> None:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=self._variables(), check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def refavs(self, module: str, *arguments: Any, status: int = 0, here: bool = False) -> str:
        """What a command of refavs prints in this environment; with `here` its jobs run without Ray."""
        assert module in NAMES and self._driver.stdin is not None and self._driver.stdout is not None
        call = {"module": module, "arguments": [*map(str, arguments)], "out": str(self._out), "here": here}
        self._driver.stdin.write(json.dumps(call) + "\n")
        self._driver.stdin.flush()
        ended, told = self._driver.stdout.readline(), self._out.read_text()
        assert ended == f"{status}\n", told[-3000:]
        return told

    def close(self) -> None:
        with self._driver:  # closes its pipes
            self._driver.kill()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films of five seconds with one moving square that hums; every other second is labelled."""
    root = tmp_path_factory.mktemp("kitchen")
    rows = ["film,split,expression"]
    for number, split in enumerate(("fit", "fit", "dev", "exam")):
        film = root / f"film{number}"
        for folder in ("frames", "masks"):
            (film / folder).mkdir(parents=True)
        for second in range(5):
            mask = np.zeros((80, 120), np.uint8)
            mask[20:60, 10 + 15 * second : 40 + 15 * second] = 255
            frame = np.full((80, 120, 3), 40 * number, np.uint8)
            frame[mask > 0] = (250, 20 * second, 30)
            Image.fromarray(frame).save(film / "frames" / f"{second}.jpg", quality=95)
            if second % 2 == 0:
                Image.fromarray(mask).save(film / "masks" / f"{second}.png")
        time_s = np.arange(5 * 48_000) / 48_000
        soundfile.write(film / "sound.wav", 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * time_s), 48_000)
        rows += [f"film{number},{split},the red square that hums", f"film{number},{split},the moving square"]
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root


def files_of(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file but those that describe the store as a whole."""
    whole = ("zarr.json", "commits/listing.json", "extract.jsonl", ".lock", "lease.json")
    paths = {str(path.relative_to(store)): path.stat() for path in store.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in paths.items() if name not in whole}


def test_package_is_used_by_every_command(environment: Environment, kitchen: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "runs" / "plugin"
    listed = environment.refavs("extract.cli", "--list-encoders")
    assert all(name in listed for name in ("quarters-48k", "letters", "patches-14", "vggish"))

    environment.refavs("extract.cli", kitchen, store, "--preset", "tiny", "--seconds", 5, here=True)
    before = files_of(store)
    environment.refavs("extract.cli", kitchen, store, "--streams", "quarters-48k,letters,patches-14", here=True)
    after = files_of(store)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert "0 damaged" in environment.refavs("extract.store_cli", "verify", store)

    use = {"visual": "patches-14", "audio": "quarters-48k", "text": "letters"}
    found = FeatureStore(store, use=use)
    sample = found[0]
    assert found.seconds == 5 and sample.audio.shape == (20, 8) and sample.text.shape == (12, 26)
    assert sample.visual["patches"].shape == (5, 6, 8, 8) and sample.labelled is not None
    assert sample.labelled.tolist() == [True, False, True, False, True]

    grid = tmp_path / "plugin.yaml"
    grid.write_text(GRID)
    told = environment.refavs("experiments.cli", grid, "--store", store, "--out", out, "--cpus-per-trial", 1)
    assert "area error" in told
    again = environment.refavs("experiments.cli", grid, "--store", store, "--out", out, "--dry-run")
    assert "2 of 2 trials done, 0 to do" in again
    assert "width" in environment.refavs("experiments.cli", "settings", "agreement")
    (tmp_path / "clap.yaml").write_text(GRID.replace("quarters-48k", "clap"))
    refused = environment.refavs("experiments.cli", tmp_path / "clap.yaml", "--store", store, "--dry-run", status=2)
    assert "'clap'" in refused and "quarters-48k" in refused

    environment.refavs("experiments.report.cli", out)
    assert "area error" in (out / "report" / "report.md").read_text()

    trial = next(path for path in sorted((out / "trials").iterdir())
                 if "quarters-48k" in (path / "config.json").read_text())  # fmt: skip
    film = tmp_path / "film.mp4"
    write_film(film)
    environment.refavs(
        "experiments.predict.cli", film, "the moving square", "--run", trial, "--out", tmp_path / "predicted"
    )
    assert len(list((tmp_path / "predicted").rglob("*.png"))) >= 5


def write_film(path: Path) -> None:
    from tests.extract.make_videos import write_video

    write_video(path, duration_s=5.0)
