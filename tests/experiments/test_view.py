"""What refavs-view shows, without the page: clips and flags, features as pictures, neighbours, runs, the guard."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.grid.config import TrialConfig
from experiments.report import gallery
from experiments.training.loop import build_model
from experiments.view import answers as answers_module
from experiments.view import cli, clips, neighbours, runs, streams
from experiments.view.answers import ANY, Answers
from experiments.view.attempt import Attempt
from experiments.view.guard import POLICY, Guard
from experiments.view.shown import Shown, ShownStore, open_all
from refavs.config import replace, to_dict
from refavs.data.splits import Splits
from refavs.errors import ConfigError, RefAVSError, StoreError
from refavs.model.checkpoint import save_model
from refavs.store import FeatureStore
from tests.experiments.small_store import AUDIO, CLIPS, MAPS, SECONDS, VISUAL, make_store
from tests.experiments.small_sweep import write_trial
from tests.experiments.test_evaluate import evaluated
from tests.experiments.test_report_gallery import SMALL
from tests.experiments.test_report_page import HOSTILE, TAGS, Elements
from tests.refavs import servers

endpoint, bucket, small = servers.endpoint, servers.bucket, servers.small
MASK_FEATURES = f"clips/{VISUAL}/mask_features"
AUDIO_PATH = f"clips/{AUDIO}/features"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("view") / "store")


@pytest.fixture
def shown(store: FeatureStore) -> ShownStore:
    return ShownStore(store.location, "store")


def answers_of(*stores: ShownStore) -> Answers:
    return Answers(Shown(stores={one.name: one for one in stores}, runs={}))


def picks(html: str) -> list[str]:
    """What the lines of a table stand for."""
    return [attributes["data-pick"] for tag, attributes in Elements(html).found if tag == "tr" and attributes]


def test_table_of_clips_is_searched_by_text_flag_and_split(shown: ShownStore) -> None:
    table = clips.clip_table(shown)
    assert len(table) == sum(CLIPS.values()) and set(table["expressions"]) == {3}
    assert clips.search(table, split="val")["id"].tolist() == ["val0", "val1"]
    assert len(clips.search(table, "SOUNDING one")) == len(table)
    assert clips.search(table, "Val1")["id"].tolist() == ["val1"]
    assert clips.search(table, ".*").empty  # no pattern
    assert clips.search(table, flag="shared").empty
    assert clips.values_in(table, "splits") == sorted(CLIPS)


def test_long_table_has_pages(shown: ShownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "PER_PAGE", 5)
    answers = answers_of(shown)
    pages = [picks(answers.clips("store", page=number)) for number in (1, 2, 3)]
    assert [len(page) for page in pages] == [5, 5, 4]
    assert [one for page in pages for one in page] == clips.clip_table(shown)["id"].tolist()
    assert picks(answers.clips("store", page=9)) == pages[2] and picks(answers.clips("store", page=None)) == pages[0]
    assert "page 2 of 3" in answers.clips("store", page=2)


def test_flags_tell_what_is_silent_shared_repeated_failed_and_missing(tmp_path: Path) -> None:
    small.write_shared(tmp_path / "store", failing=["sound of c"])
    table = clips.clip_table(ShownStore(str(tmp_path / "store"), "s")).set_index("id")["flags"]
    flags = {clip: set(told.split(", ")) - {""} for clip, told in table.items()}
    assert {"repeated_from_s", "shared"} <= flags["a"] and {"silent", "shared"} <= flags["b"]
    assert "failed" in flags["c"] and "shared" not in flags["c"] and "failed" not in flags["a"]
    assert all(flag in clips.FLAGS for found in flags.values() for flag in found)


def test_store_that_is_written_for_the_first_time_shows_what_is_committed(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "store")
    shown = ShownStore(str(tmp_path / "store"), "s")
    assert clips.clip_table(shown).empty and answers_of(shown).first_clip("s") == ""
    small.write_rows(writer, small.VISUAL, ["frames of a", "frames of b"])
    assert clips.clip_table(shown).empty
    shown.reopen()
    answers = answers_of(shown)
    assert picks(answers.clips("s")) == ["frames of a", "frames of b"]
    assert "has not written its table" in answers.clip("s", "frames of a")
    assert "being written" in answers.head("s")
    view = streams.stream_view(shown, small.MAPS, "frames of b")
    assert len(view.rows[0].pictures) == 3 and not view.note
    assert [one.clip_id for one in neighbours.nearest(shown, small.VISUAL, "frames of b").found] == ["frames of a"]
    small.write_content(writer)
    writer.write_expressions(small.expressions(writer))
    writer.finalise()
    shown.reopen()
    assert picks(answers.clips("s")) == list(small.CLIPS)
    assert "being written" not in answers.head("s")


def test_clip_has_its_objects_outlined_and_its_expressions(shown: ShownStore) -> None:
    view = clips.clip_view(shown, "train0")
    assert view.objects == ((0, True), (1, True)) and len(view.steps) == SECONDS
    assert all(len(step.objects) == 2 and all(step.objects) for step in view.steps)
    assert {one.text for one in view.said} == {"the left one", "the right one", "the sounding one"}
    assert {one.number for one in view.said} == {0, 1} and view.said[0].grade == "easy"
    assert "no longer at" in view.note and view.sound is None
    assert clips.clip_view(shown, "null_test_n0").objects == ((0, False), (1, False))
    for clip_id in ("../train0", "", "/etc/passwd", "nobody"):
        with pytest.raises(StoreError, match="has no clip"):
            clips.clip_view(shown, clip_id)
        assert 'role="status"' in answers_of(shown).clip("store", clip_id)


def test_principal_components_colour_what_differs() -> None:
    rng = np.random.default_rng(0)
    maps = 0.01 * rng.standard_normal((2, 8, 6, 6)).astype(np.float32)
    maps[:, 2, :, 3:] += 1
    maps[:, 5, 3:, :] += 0.5
    share, found = streams.principal(torch.from_numpy(maps))
    assert share > 0.98
    assert np.corrcoef(found[..., 0].ravel(), maps[:, 2].ravel())[0, 1] > 0.99
    assert np.corrcoef(found[..., 1].ravel(), maps[:, 5].ravel())[0, 1] > 0.99
    twice, _ = streams.principal(torch.from_numpy(maps))
    assert twice == share
    colours = streams.coloured(found)
    assert colours.dtype == np.uint8 and colours[..., 0].min() == 0 and colours[..., 0].max() == 255


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_constant_and_odd_values_are_drawn(channels: int) -> None:
    share, found = streams.principal(torch.zeros(1, channels, 2, 2))
    assert share == 0 and not found.any() and not streams.coloured(found).any()
    odd = torch.full((1, channels, 2, 2), float("nan"))
    assert np.isfinite(streams.principal(odd)[1]).all()
    assert streams.norm_facts(np.full((1, 2, 2), np.nan)) == (("norm", "no token is finite"),)


def test_outliers_are_counted_and_their_step_is_named() -> None:
    norms = np.ones((3, 4, 4))
    norms[1, 2, 2], norms[2, 0, 0], norms[0, 0, 0] = 40, np.inf, 0
    facts = dict(streams.norm_facts(norms))
    assert facts["largest norm"] == "step 1" and facts["outliers"].startswith("1 of 48 ")
    assert facts["not finite"] == "1 tokens" and facts["all zero"] == "1 tokens"


def test_streams_of_one_store_or_of_two_stand_side_by_side(shown: ShownStore, tmp_path: Path) -> None:
    other = ShownStore(make_store(tmp_path / "other", noise=1).location, "other")
    answers = answers_of(shown, other)
    names = list(answers.places())
    assert f"store: {VISUAL}/s8" in names and f"other: {AUDIO}/features" in names
    html = answers.streams("val0", [f"store: {VISUAL}/s8", f"other: {VISUAL}/s8", f"other: {AUDIO}/features", "x"])
    assert html.count('class="stream"') == 3 and html.count("<img") == 2 * 2 * SECONDS + 1
    assert f"{SECONDS} t x 8 c x 4 h x 4 w, float16" in html
    assert "has no" in answers.streams("nobody", names[:1])
    assert [place.path for place in streams.places_of(shown)][:1] == [MASK_FEATURES]


def test_neighbours_are_nearest_by_the_mean_within_a_bounded_sample(
    shown: ShownStore, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    read: list[str] = []
    values = neighbours.values

    def counted(store: FeatureStore, spec: Any, clip_id: str) -> torch.Tensor:
        read.append(spec.path)
        return values(store, spec, clip_id)

    monkeypatch.setattr(neighbours, "values", counted)
    near = neighbours.nearest(shown, AUDIO, "train0", count=20)
    means = {clip: values(shown.store, shown.store.specs[AUDIO_PATH], clip).mean(0) for clip in shown.store.clips["id"]}
    own = float(means["train0"][0])
    assert near.num_sampled == near.num_clips == len(means) - 1
    nearest, farthest = near.found[0], near.found[-1]
    assert abs(float(means[nearest.clip_id][0]) - own) < abs(float(means[farthest.clip_id][0]) - own)
    assert nearest.similarity > 0.5 > farthest.similarity and "train0" not in {one.clip_id for one in near.found}
    number = len(read)
    neighbours.nearest(shown, AUDIO, "train1")
    assert len(read) == number + 1  # the sample is kept
    monkeypatch.setattr(neighbours, "MOST_CLIPS", 3)
    shown.reopen()
    assert neighbours.nearest(shown, VISUAL, "train0").num_sampled <= 3
    assert set(read[number + 1 :]) == {f"clips/{VISUAL}/{min(MAPS, key=lambda name: MAPS[name])}"}
    assert "no stream" in neighbours.nearest(shown, "visual/none", "train0").note


@pytest.mark.long
def test_store_of_a_server_is_shown_by_range(bucket: str) -> None:
    servers.write_small(bucket)
    shown = open_all([bucket])
    (name,), (one,) = shown.stores, shown.stores.values()
    answers = Answers(shown)
    assert picks(answers.clips(name)) == list(small.CLIPS)
    assert one.store.location in answers.head(name) and "no longer at" in answers.clip(name, "a")
    view = streams.stream_view(one, small.MAPS, "c")
    assert len(view.rows[0].pictures) == 3 and not view.note
    assert len(neighbours.nearest(one, small.SOUND, "c").found) == len(small.CLIPS) - 1


def test_opening_a_store_reads_no_feature(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a feature was read")

    monkeypatch.setattr(FeatureStore, "read", refuse)
    shown = open_all([store.location])
    answers = Answers(shown)
    assert len(picks(answers.clips("store"))) == 14 and "14 clips" in answers.head("store")


def write_run(store: FeatureStore, sweep: Path) -> Path:
    """A sweep with one untrained run on the small store."""
    trial = write_trial(sweep, "full", store=store.fingerprint, quality=None)
    torch.manual_seed(0)
    config = replace(TrialConfig(), SMALL)
    model = build_model(config, store)
    evaluated(model, store, Splits.of({}).tested, trial / "statistics.parquet")
    save_model(trial / "checkpoint", model, {"store": store.fingerprint, "trial": to_dict(config)})
    return sweep


@pytest.fixture(scope="module")
def sweep(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(store, tmp_path_factory.mktemp("sweep"))


@pytest.mark.long
def test_run_shows_its_worst_and_best_and_predicts_one_of_them(store: FeatureStore, sweep: Path) -> None:
    shown = open_all([str(sweep), store.location])
    (name,), (run,) = shown.runs, shown.runs.values()
    worst, best = runs.ranked(run, runs.WORST), runs.ranked(run, runs.BEST)
    assert worst["J"].is_monotonic_increasing and best["J"].is_monotonic_decreasing
    assert set(worst["row"]) == set(best["row"]) and set(worst["split"]) == {"test_s", "test_u"}
    assert set(runs.ranked(run, runs.FALSE)["split"]) <= {"test_n"}
    assert set(runs.ranked(run, runs.BEST, "LEFT", "test_s")["text"]) == {"the left one"}
    answers = Answers(shown)
    lines = answers.expressions(name, runs.WORST, "sounding")
    assert len(picks(lines)) == 4 and "4 of 18 expressions" in lines
    assert answers.splits(name) == [ANY, "test_n", "test_s", "test_u"]
    card = runs.card(run, int(worst["row"].iloc[0]))
    assert card.sentence == worst["text"].iloc[0] and len(card.steps) == SECONDS
    html = answers.prediction(name, str(worst["row"].iloc[0]))
    assert card.uid in html and 'class="truth"' in html and html == answers.first_prediction(name)
    for row in ("-1", "1000000000", "1.5", "", "٣"):
        assert "has no expression" in answers.prediction(name, row)


@pytest.mark.long
def test_run_without_its_store_shows_scores_and_says_why_there_is_no_prediction(
    store: FeatureStore, sweep: Path, tmp_path: Path
) -> None:  # fmt: skip
    shown = open_all([str(next((sweep / "trials").iterdir()))])
    assert not shown.stores and len(shown.runs) == 1
    answers = Answers(shown)
    (name,) = shown.runs
    row = picks(answers.expressions(name))[0]
    assert "does not say where its store is" in answers.prediction(name, row)
    assert "no run" in answers.expressions("none")


@pytest.mark.parametrize(("place", "told"), [
    ("missing", "does not exist"), ("file", "is a file"), ("empty", "neither a store nor a sweep"),
    ("unfinished", "no finished run"),
])  # fmt: skip
def test_place_that_is_nothing_to_show_is_refused(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "trials" / "key").mkdir(parents=True)
    with pytest.raises(ConfigError, match=told):
        open_all([str(tmp_path / place)])


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    from experiments.view.markup import render
    from tests.experiments.test_report_page import gallery_of

    (group,) = gallery_of(text).groups
    said = clips.Said(text=text, uid=text, split=text, grade=text, dimension=text, number=None)
    near = neighbours.Neighbours(array=text, note=text, found=(neighbours.Neighbour(clip_id=text, similarity=0.5),))
    parts = [
        render("note", text), render("head", text, text, [text], [text]), render("prediction", group.cards[0]),
        render("clip", clips.ClipView(id=text, facts={"flags": text, "splits": text, "seconds": text}, said=(said,),
                                      steps=group.cards[0].steps, note=text)),
        render("streams", text, [streams.StreamView(title=text, note=text, facts=((text, text),))]),
        render("neighbours", text, near, [""]), render("lines", [text], [(text, [text, text])], [], text),
        render("attempt", Attempt(expression=text, overlay=Path("x"), shares=((0, 1.0),), notes=(text,))),
    ]  # fmt: skip
    for html in parts:
        for tag, attributes in Elements(html).found:
            assert tag in {*TAGS, "audio", "img", "button", "h3"}, tag
            assert not any(name.startswith("on") for name in attributes)
            assert not attributes.get("href", "").startswith("javascript:")


def asked(guard: Guard, path: str = "/", method: str = "GET", query: str = "", **headers: str) -> dict[str, Any]:
    """The guard's answer to a request: status and headers."""
    found: dict[str, Any] = {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told = [(name.decode(), value.decode()) for name, value in message["headers"]]
            found.update(status=message["status"], **dict(told))

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    given = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:7", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": given}
    asyncio.run(guard(scope, receive, send))
    return found


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-security-policy", b"none")]})
    await send({"type": "http.response.body", "body": b""})


def test_guard_passes_the_pages_own_requests_and_loads_nothing_from_elsewhere() -> None:
    guard = Guard(inner, port=7)
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/file=/tmp/x.mp4"):
        answer = asked(guard, path)
        assert answer["status"] == 200 and answer["content-security-policy"] == POLICY
    assert asked(guard, host="localhost:7")["status"] == asked(guard, host="[::1]:7")["status"] == 200
    for path in ("/gradio_api/proxy=http://x", "/monitoring", "/gradio_api/vibe-edit/", "/gradio_api/info", "/login",
                 "/gradio_api/run-history/connect", "/gradio_api/deep_link", "/docs", "/openapi.json"):  # fmt: skip
        assert asked(guard, path)["status"] == 404, path


def test_guard_refuses_other_names_of_this_machine_and_pages_of_other_sites() -> None:
    guard = Guard(inner, port=7)
    assert asked(guard, host="evil.example")["status"] == asked(guard, host="127.0.0.1.evil.example")["status"] == 403
    assert asked(guard, "/gradio_api/upload", "POST", origin="http://evil.example")["status"] == 403
    assert asked(guard, "/gradio_api/upload", "POST", origin="http://127.0.0.1:7")["status"] == 200
    assert asked(Guard(inner, "secret", any_host=True), host="gpu7.lab:7")["status"] == 401


def test_guard_asks_for_the_token_once_and_keeps_it_in_a_cookie() -> None:
    guard = Guard(inner, "secret", any_host=True, port=7)
    for query, cookie in (("", ""), ("token=", ""), ("token=Secret", ""), ("", "refavs_view_7=no"), ("", "=;;"),
                          ("", "refavs_view_8=secret"), ("token=%C3%A9", "")):  # fmt: skip
        assert asked(guard, "/assets/index.js", query=query, cookie=cookie)["status"] == 401
    entered = asked(guard, query="token=secret")
    assert entered["status"] == 303 and entered["location"] == "/" and "HttpOnly" in entered["set-cookie"]
    assert asked(guard, cookie=entered["set-cookie"].partition(";")[0])["status"] == 200


def test_error_of_the_store_is_one_note(shown: ShownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RefAVSError("<b>damaged</b>")

    monkeypatch.setattr(gallery, "load_model", refuse)
    monkeypatch.setattr(clips, "footage_of", refuse)
    html = answers_of(shown).clip("store", "train0")
    assert "&lt;b&gt;damaged" in html and html.count("<p") == 1
    assert isinstance(clips.clip_table(shown), pd.DataFrame)


def test_command_without_gradio_or_with_a_port_in_use_says_what_to_do(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert cli.main([store.location, "--port", str(other.getsockname()[1])]) == 2
    assert "in use; name another --port" in capsys.readouterr().err
    assert cli.main([store.location, "--host", "203.0.113.7"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([store.location]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("run: pip install 'refavs[view]'")
