"""The page of refavs-view in Gradio: what its server gives out and takes in, and the page in a real browser."""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from experiments.view.answers import Answers
from experiments.view.shown import open_all
from extract.cli import build_parser, prepared
from refavs.store import FeatureStore
from tests.experiments import small_run
from tests.experiments.browser import Browser, browser, find_browser
from tests.experiments.small_store import make_store
from tests.experiments.small_sweep import write_trial
from tests.experiments.test_view import write_run
from tests.extract.command import extract
from tests.extract.make_videos import write_video

if find_spec("gradio") is None:  # which takes seconds to import, in each process that collects tests
    pytest.skip("Gradio is not installed: pip install 'refavs[view]'", allow_module_level=True)
# Of the libraries that Gradio and MLflow import, and of event loops that Gradio makes in passing and does not close.
pytestmark = [
    pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]  # fmt: skip
HOSTILE = "<img src=x onerror=window.caught=1><script>window.caught=2</script>${window.caught=3}{{caught}}"
WIDTHS = (1400, pytest.param(400, marks=pytest.mark.slow))


@dataclass(frozen=True, kw_only=True)
class Site:
    """A served page."""

    url: str
    uploads: Path
    store: FeatureStore
    video: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> Iterator[Site]:
    """Two stores, one of them of a video with a hostile sentence, and a run on each; served from this process."""
    root = tmp_path_factory.mktemp("page")
    (root / "films").mkdir()
    video = write_video(root / "films" / "clip.mp4", size=(72, 128))
    (root / "sentences.csv").write_text(f'video,exp\nclip.mp4,the left one\nclip.mp4,"{HOSTILE}"\n')
    run = prepared(build_parser().parse_args(
        [str(root / "films"), str(root / "videos"), "--preset", "tiny", "--expressions", str(root / "sentences.csv")]
    ))  # fmt: skip
    assert not any(result.error for result in extract(run.source, root / "videos", run.streams))
    description = json.loads((root / "videos" / "zarr.json").read_text())
    description["attributes"]["extraction"] = {"source": str(root / "films"), "layout": "videos"}
    (root / "videos" / "zarr.json").write_text(json.dumps(description))
    store = FeatureStore(root / "videos")
    small_run.make_trial(store, write_trial(root / "tried", "tried", store=store.fingerprint, quality=None))
    write_run(make_store(root / "store"), root / "sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root / "uploads"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr("experiments.view.page.MOST_UPLOAD_BYTES", 2**20)
        (root / "uploads").mkdir()
        shown = open_all([str(root / name) for name in ("store", "videos", "sweep", "tried")])
        with served(shown) as url:
            yield Site(url=url, uploads=root / "uploads", store=store, video=video)


class served:
    """Serves what is shown on a free port, in a thread, until the end of the block."""

    def __init__(self, shown: Any) -> None:
        import uvicorn

        from experiments.view.page import application

        self.loop = asyncio.new_event_loop()  # Gradio would make some and close none
        asyncio.set_event_loop(self.loop)
        self.listening = socket.create_server(("127.0.0.1", 0))
        port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        config = uvicorn.Config(application(Answers(shown), port), log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.05)
        return self.url

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()
        asyncio.set_event_loop(None)
        self.loop.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # here, and not in a test of another file


def client(site: Site) -> httpx.Client:
    return httpx.Client(base_url=site.url, trust_env=False, timeout=600)


@pytest.mark.parametrize("place", ["/etc/passwd", "{store}/zarr.json", "{uploads}/../videos/zarr.json",
                                   "../../../../../etc/passwd", "{cwd}/pyproject.toml"])  # fmt: skip
def test_no_file_outside_of_the_uploads_is_given_out(site: Site, place: str) -> None:
    path = place.format(store=site.store.location, uploads=site.uploads, cwd=Path.cwd())
    with client(site) as asked:
        answer = asked.get(f"gradio_api/file={path}")
    assert answer.status_code in (403, 404) and "refavs" not in answer.text and "root:" not in answer.text


def test_upload_gets_a_place_of_the_servers_choice_and_a_large_one_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    name = "../../../../etc/evil<script>.mp4"
    with client(site) as asked:
        answer = asked.post("gradio_api/upload", files={"files": (name, b"no video", "video/mp4")})
        large = asked.post("gradio_api/upload", files={"files": ("a.mp4", bytes(2**20 + 2**16), "video/mp4")})
    (place,) = answer.json()
    assert Path(place).resolve().is_relative_to(site.uploads.resolve()) and "<" not in Path(place).name
    assert large.status_code == 413


def attempt(site: Site, video: Any, sentence: str = "the left one") -> dict[str, Any]:
    """What the queue answers to the button of the Try tab, asked without the page."""
    with client(site) as asked:
        config = asked.get("config").json()
        kinds = {part["id"]: part for part in config["components"]}
        (event,) = [one for one in config["dependencies"]
                    if any(kinds[part]["type"] == "video" for part in one["inputs"])]  # fmt: skip
        run = next(kinds[part]["props"]["choices"] for part in event["inputs"] if kinds[part]["type"] == "dropdown")
        tried = next(value for _, value in run if value.startswith("tried"))
        body = {"data": [tried, video, "", sentence], "fn_index": event["id"],
                "session_hash": f"s{time.monotonic_ns()}"}  # fmt: skip
        assert asked.post("gradio_api/queue/join", json=body).status_code == 200
        with asked.stream("GET", "gradio_api/queue/data", params={"session_hash": body["session_hash"]}) as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("msg") == "process_completed":
                    return told
    raise AssertionError("no answer")


def test_request_that_names_a_file_or_an_address_gets_nothing(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.1)
        places = ["/etc/passwd", f"{site.video}", f"{site.uploads}/../films/clip.mp4",
                  f"http://127.0.0.1:{other.getsockname()[1]}/a.mp4", "http://example.org/a.mp4"]  # fmt: skip
        for place in places:
            told = attempt(site, {"path": place, "meta": {"_type": "gradio.FileData"}})
            assert not told["success"], place
        with pytest.raises(TimeoutError):
            other.accept()


def test_upload_that_is_no_video_is_told_without_its_place(site: Site) -> None:
    with client(site) as asked:
        (place,) = asked.post("gradio_api/upload", files={"files": ("a.mp4", b"no video", "video/mp4")}).json()
    told = attempt(site, {"path": place, "meta": {"_type": "gradio.FileData"}})
    overlay, words = told["output"]["data"]
    assert told["success"] and overlay is None and "is cut off, damaged or not a video" in words
    assert str(site.uploads) not in words


@pytest.mark.process  # Gradio asks ffprobe about the overlay, where it is installed
def test_two_viewers_see_what_each_of_them_chose(site: Site) -> None:
    with client(site) as asked:
        (place,) = asked.post(
            "gradio_api/upload", files={"files": ("a.mp4", site.video.read_bytes(), "video/mp4")}
        ).json()
    found: dict[str, Any] = {}

    def view(sentence: str) -> None:
        found[sentence] = attempt(site, {"path": place, "meta": {"_type": "gradio.FileData"}}, sentence)

    viewers = [threading.Thread(target=view, args=(sentence,)) for sentence in ("the left one", HOSTILE)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    paths = set()
    for sentence, told in found.items():
        overlay, words = told["output"]["data"]
        assert told["success"] and overlay, words
        assert ("the left one" in words) == (sentence != HOSTILE) and "<img" not in words and "<script" not in words
        path = Path((overlay.get("video") or overlay)["path"])
        assert path.is_relative_to(site.uploads) and path.read_bytes()[4:8] == b"ftyp"
        paths.add(path)
    assert paths


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


def wait(page: Browser, condition: str) -> None:
    """Waits until a line of JavaScript is true in the page."""
    limit = time.monotonic() + 120
    while not page.value(condition):
        assert time.monotonic() < limit, condition
        time.sleep(0.1)


def press(page: Browser, selector: str, text: str) -> None:
    page.value(f"[...document.querySelectorAll({json.dumps(selector)})]"
               f".find(one => one.textContent.trim() === {json.dumps(text)}).click()")  # fmt: skip


def faults(page: Browser, site: Site) -> list[str]:
    """Errors of the console, requests to elsewhere, and content that is wider than the window."""
    wrong = [str(one["entry"]) for one in page.heard("Log.entryAdded") if one["entry"]["level"] == "error"]
    wrong += [str(one)[:400] for one in page.heard("Runtime.exceptionThrown")]
    wrong += [str(one)[:400] for one in page.heard("Runtime.consoleAPICalled") if one["type"] == "error"]
    urls = [one["request"]["url"] for one in page.heard("Network.requestWillBeSent")]
    wrong += [f"request: {url[:80]}" for url in urls if not url.startswith((site.url, "data:", f"blob:{site.url}"))]
    wide = page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*wrong, *([f"{wide} px too wide"] if wide else [])]


@pytest.mark.process
@pytest.mark.parametrize("width", WIDTHS)
def test_browser_opens_each_tab_and_has_nothing_against_it(chromium: Browser, site: Site, width: int) -> None:
    page = chromium
    page.open(site.url, width)
    wait(page, "document.querySelectorAll('.refavs .clip .steps li').length == 3")
    press(page, ".refavs .lines button", "val1")
    wait(page, "document.querySelector('.refavs .clip h3').textContent == 'val1'")
    press(page, "button[role=tab]", "Features")
    wait(page, "document.querySelectorAll('.refavs .stream img').length == 7")
    wait(page, "document.querySelectorAll('.refavs .near button').length == 8")
    page.value("document.querySelector('.refavs .near button').click()")
    wait(page, "![...document.querySelectorAll('.refavs h3')].some(one => one.textContent == 'val1')")
    press(page, "button[role=tab]", "Runs")
    wait(page, "!!document.querySelector('.refavs .card .truth')")
    before = page.value("document.querySelector('.refavs .card h4').closest('.refavs').innerHTML.length")
    page.value("[...document.querySelectorAll('.refavs .lines')].at(-1).querySelector('tr:last-child button').click()")
    wait(page, f"document.querySelector('.refavs .card h4').closest('.refavs').innerHTML.length != {before}")
    press(page, "button[role=tab]", "Try")
    wait(page, "!!document.querySelector('input[type=file]')")
    assert not faults(page, site)


@pytest.mark.slow
def test_browser_shows_hostile_text_and_plays_the_overlay_of_an_upload(chromium: Browser, site: Site) -> None:
    page = chromium
    page.open(site.url, 1400)
    wait(page, "!!document.querySelector('.refavs .clip')")
    choose(page, "Store", "videos")
    wait(page, f"document.querySelector('.refavs .clip').textContent.includes({json.dumps(HOSTILE)})")
    assert page.value("!!document.querySelector('.refavs .clip audio') && !!document.querySelector('.clip image')")
    press(page, "button[role=tab]", "Try")
    wait(page, "!!document.querySelector('input[type=file]')")
    choose(page, "Run", "tried")
    field = page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=[str(site.video)], objectId=field)
    wait(page, "!!document.querySelector('video')")
    page.value("""(() => {
        const field = [...document.querySelectorAll("textarea, input")].find(one => one.maxLength == 500);
        Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, "the left one");
        field.dispatchEvent(new Event("input", {bubbles: true}));
    })()""")
    press(page, "button", "Segment")
    wait(page, "document.querySelectorAll('.refavs .shares li').length == 10")
    wait(page, "[...document.querySelectorAll('video')].length == 2")
    wait(page, "[...document.querySelectorAll('video')].every(one => one.readyState >= 2 && !one.error)")
    assert page.value("window.caught === undefined") and not faults(page, site)


def choose(page: Browser, label: str, start: str) -> None:
    """Chooses an entry of a menu by its start."""
    page.value(f"(() => {{const field = document.querySelector('input[aria-label={json.dumps(label)}]');"
               "field.focus(); field.dispatchEvent(new Event('focus')); field.click()})()")  # fmt: skip
    entries = "[...document.querySelectorAll('li[role=option]')]"
    wait(page, f"{entries}.some(one => one.textContent.trim().includes({json.dumps(start)}))")
    page.value(f"{entries}.find(one => one.textContent.trim().includes({json.dumps(start)}))"
               ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))")  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_command_serves_until_it_is_ended_and_leaves_no_upload(
    tmp_path: Path, site: Site, ending: signal.Signals
) -> None:  # fmt: skip
    code = "import sys; from experiments.view.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, site.store.location, "--port", "0", "--token"]
    own = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as one:
        assert one.stdout is not None
        address = one.stdout.readline().split()[1]
        bare, _, token = address.partition("?token=")
        with httpx.Client(trust_env=False, timeout=600) as asked:
            assert asked.get(bare).status_code == 401 and len(token) > 20
            assert asked.get(address, follow_redirects=True).status_code == 200
            assert asked.post(f"{bare}gradio_api/upload", files={"files": ("a.mp4", b"x")}).status_code == 200
        (folder,) = tmp_path.glob("refavs-view-*")
        assert list(folder.rglob("a.mp4")) and folder.stat().st_mode & 0o77 == 0
        one.send_signal(ending)
        assert one.wait(600) == 0
    assert not list(tmp_path.glob("refavs-view-*"))
