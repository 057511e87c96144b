"""The MLflow UI in a headless Chromium: a beta sweep compared by parallel coordinates, over model.beta and val/J.

The picture of it in `infra/` is made by this test: REFAVS_PICTURE=infra/mlflow-compare.png.
"""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.experiments.browser import Browser, browser, find_browser
from tests.experiments.small_store import make_store
from tests.faults.sweeps import Sweep, within

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "mlflow-ui.sh"
NAME = "beta-random-features"  # which is what the picture shows, and must say
WIDTH, HEIGHT = 1300, 640
BETAS, SEEDS = (0.0, 0.5, 1.0, 2.0), (0, 1, 2)
GRID = f"""
  train: {{epochs: 12, steps_per_epoch: 20, learning_rate: 0.003}}
grid: {{model.beta: {list(BETAS)}}}
seeds: {list(SEEDS)}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Trials that have learned something, so that their lines differ."""
    folder = tmp_path_factory.mktemp("beta")
    store = make_store(folder / "store", {"train": 16, "val": 6, "test_s": 2, "test_u": 2, "test_n": 2})
    sweep = Sweep(folder, GRID, store=Path(store.location), name=NAME)
    status, out, err = sweep.run()
    assert status == 0 and "RANDOM FEATURES" in out, out + err
    return sweep


@pytest.fixture(scope="module")
def address(sweep: Sweep) -> Iterator[str]:
    """Of the UI, started by the script that the sweep names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{uri}/health", timeout=5).status == 200
        except OSError:
            return False

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen([str(SCRIPT), str(sweep.out), str(port)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env=os.environ | {"PATH": path}) as process:  # fmt: skip
        try:
            assert within(answers), "the UI does not answer"
            yield uri
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def trials(sweep: Sweep) -> list[Run]:
    client = MlflowClient(f"sqlite:///{sweep.out.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.`refavs.kind` = 'trial'"))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here")
    with browser(program, tmp_path / "profile") as page:
        page.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        yield page


def choose(page: Browser, number: int, name: str) -> None:
    """Adds an entry to a drop-down list of several, as by the keyboard."""
    field = f"document.querySelectorAll('input[type=search]')[{number}]"
    page.value(f"{field}.focus(), 1")
    page.call("Input.insertText", text=name)
    options = "[...document.querySelectorAll('[role=option], .du-bois-light-select-item-option')].map(o => o.innerText)"
    assert within(lambda: name in (page.value(options) or []))
    for kind in ("rawKeyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


def axes(page: Browser) -> list[str]:
    """The names over the lines of the plot."""
    return page.value("[...document.querySelectorAll('.js-plotly-plot .axis-title')].map(e => e.textContent)") or []


def test_compared_runs_show_beta_and_val_j(page: Browser, address: str, trials: list[Run], tmp_path: Path) -> None:
    ids = json.dumps([run.info.run_id for run in trials], separators=(",", ":"))
    experiment = trials[0].info.experiment_id
    page.call("Page.navigate", url=f'{address}/#/compare-runs?runs={ids}&experiments=["{experiment}"]')
    assert within(lambda: axes(page)), page.value("document.body.innerText")
    for button in ("b.innerText == 'Clear All'", "/^close/i.test(b.getAttribute('aria-label') ?? '')"):  # the assistant
        page.value(f"[...document.querySelectorAll('button')].filter(b => {button}).forEach(b => b.click()), 1")
    assert within(lambda: not axes(page))
    choose(page, 0, "model.beta")
    choose(page, 1, "val/J")
    assert within(lambda: axes(page) == ["model.beta", "val/J"]), axes(page)
    text = page.value("document.body.innerText")
    assert f"Comparing {len(trials)} Runs from 1 Experiment" in text and NAME in text
    lines = "document.querySelector('.js-plotly-plot').data[0].dimensions"
    data = json.loads(page.value(f"JSON.stringify({lines}.map(d => [d.label, [...d.values]]))"))
    wanted = sorted((float(run.data.params["model.beta"]), run.data.metrics["val/J"]) for run in trials)
    found = sorted(zip(*(values for _, values in data), strict=True))
    assert np.array(found) == pytest.approx(np.array(wanted))
    assert sorted({beta for beta, _ in wanted}) == list(BETAS) and len({score for _, score in wanted}) > len(BETAS)
    for run in trials:
        assert run.data.tags["refavs.features"] == "random weights" and str(run.info.run_name) in text
    assert re.search(r"test_s/J", text) and "train.learning_rate" in text
    page.value("document.activeElement.blur(), document.body.click(), 1")
    picture = Path(os.environ.get("REFAVS_PICTURE", tmp_path / "compare.png"))
    shot = page.call("Page.captureScreenshot")
    picture.write_bytes(base64.b64decode(shot["data"]))
    assert 10_000 < picture.stat().st_size <= 150_000


def test_list_of_runs_shows_the_sweep_and_its_trials(page: Browser, address: str, trials: list[Run]) -> None:
    page.call("Page.navigate", url=f"{address}/#/experiments/{trials[0].info.experiment_id}/runs")

    def text() -> str:
        return page.value("document.body.innerText") or ""

    # One row, under which the trials are folded, and the features it was trained on.
    assert within(lambda: f"{len(trials) + 1} matching runs" in text()), text()
    row = re.compile(r"Run Name.*\ng\n.*\bstore \([0-9a-f]{8}", re.DOTALL)
    assert within(lambda: row.search(text())) and NAME in text(), text()
    assert not any(str(run.info.run_name) in text() for run in trials)
