"""The page of refavs-view, drawn by Gradio: tabs for clips, features, runs and new videos."""

import os
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import processing_utils
from gradio.themes import Default

from experiments.view.answers import ANY, Answers
from experiments.view.attempt import MOST_LETTERS, MOST_SECONDS
from experiments.view.guard import App, Guard
from experiments.view.markup import style
from experiments.view.runs import ORDERS, WORST

QUEUE = 32  # requests that may wait; later ones are refused as the page is busy
AT_ONCE = 4
KEPT_S = 3600  # of uploads and results
MOST_STREAMS = 4
MOST_UPLOAD_BYTES = 200 * 2**20
# A click on anything that names what it stands for; Python gets the name.
PICK = """element.addEventListener("click", event => {
  const chosen = event.target.closest("[data-pick]");
  if (!chosen) return;
  element.querySelectorAll("[aria-current]").forEach(row => row.removeAttribute("aria-current"));
  chosen.closest("tr")?.setAttribute("aria-current", "true");
  trigger("select", {picked: chosen.dataset.pick});
});"""
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}


def build_page(answers: Answers) -> gr.Blocks:
    """The page."""
    # Gradio would fetch an address that a request gives instead of a file.
    processing_utils.async_ssrf_protected_download = _refuse_address  # type: ignore[assignment]
    with gr.Blocks(title="refavs-view", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        bar = Bar(answers) if answers.shown.stores else None
        with gr.Tabs():
            if bar is not None:
                _connect(answers, page, bar, ClipsTab(), FeaturesTab(answers))
            if answers.shown.runs:
                RunsTab(answers, page)
                TryTab(answers)
    # Until `launch` has set this, Gradio lets a request name any file of this machine as its upload; a mounted page is
    # never launched.
    assert page.has_launched is False
    page.has_launched = True
    return page.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE)


def application(answers: Answers, port: int, token: str | None = None, any_host: bool = False) -> App:
    """The web application: Gradio's page behind the guard."""
    site = gr.mount_gradio_app(
        FastAPI(openapi_url=None), build_page(answers), path="/", server_port=port, footer_links=[],
        run_history=False, allowed_paths=[], show_error=False, max_file_size=MOST_UPLOAD_BYTES, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False, theme=_theme(), css=style(),
    )  # fmt: skip
    return Guard(site, token, any_host, port)


def _theme() -> Default:
    """Gradio's plain theme in fonts that every system has, as others would be fetched."""
    return Default(
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"], primary_hue="blue", spacing_size="sm",
        radius_size="sm", text_size="md",
    )  # fmt: skip


class Bar:
    """The store that is shown, above all tabs."""

    def __init__(self, answers: Answers) -> None:
        names = list(answers.shown.stores)
        with gr.Row(elem_classes="bar"):
            self.store = gr.Dropdown(names, value=names[0], label="Store", visible=len(names) > 1, scale=1)
            self.head = _html(scale=6)
            self.refresh = gr.Button("Refresh", size="sm", scale=0, min_width=110)
        self.chosen = gr.State("")


class ClipsTab:
    """The table of clips, and the chosen one."""

    def __init__(self) -> None:
        with gr.Tab("Clips"):
            with gr.Row():
                self.text = gr.Textbox(label="Search", placeholder="an id, or words of an expression", scale=4)
                self.flag = _any("Flag")
                self.split = _any("Split")
                self.number = _page()
            self.table = _html(js_on_load=PICK)
            self.clip = _html()


class FeaturesTab:
    """The features of the chosen clip, and the clips nearest to it."""

    def __init__(self, answers: Answers) -> None:
        choices = list(answers.places())
        with gr.Tab("Features") as self.tab:
            self.streams = gr.Dropdown(choices, value=_first_of_each(choices), multiselect=True,
                                       max_choices=MOST_STREAMS, label="Streams, side by side")  # fmt: skip
            self.pictures = _html()
            self.near = gr.Dropdown([], label="Clips that look or sound alike, by the mean of")
            self.neighbours = _html(js_on_load=PICK)


class RunsTab:
    """The expressions of a run by score, and its prediction beside the truth."""

    def __init__(self, answers: Answers, page: gr.Blocks) -> None:
        names = list(answers.shown.runs)
        with gr.Tab("Runs"):
            with gr.Row():
                run = gr.Dropdown(names, value=names[0], label="Run", scale=3, min_width=220)
                order = gr.Dropdown(list(ORDERS), value=WORST, label="Order", scale=1, min_width=120)
                split = _any("Split")
                text = gr.Textbox(label="Search", placeholder="words, or a clip's id", scale=3, min_width=180)
                number = _page()
            table = _html(js_on_load=PICK)
            card = _html()

        def first(name: str) -> tuple[Any, ...]:
            return (gr.Dropdown(answers.splits(name), value=ANY), 1, answers.expressions(name),
                    answers.first_prediction(name))  # fmt: skip

        def pick(name: str, event: gr.EventData) -> str:
            return answers.prediction(name, str(event.picked))

        for event in (page.load, run.input):
            event(first, [run], [split, number, table, card], **PRIVATE)
        for event in (order.input, split.input, text.change, number.change):
            event(answers.expressions, [run, order, text, split, number], table, trigger_mode="always_last", **PRIVATE)
        table.select(pick, [run], card, **PRIVATE)


class TryTab:
    """A run on an uploaded video, or on one of the store."""

    def __init__(self, answers: Answers) -> None:
        names = list(answers.shown.runs)
        store = next((name for name in answers.shown.stores if answers.videos(name)), "")
        videos = answers.videos(store)
        with gr.Tab("Try"), gr.Row():
            with gr.Column(scale=2, min_width=280):
                run = gr.Dropdown(names, value=names[0], label="Run")
                video = gr.Video(label=f"A video (up to {MOST_UPLOAD_BYTES >> 20} MB; first {MOST_SECONDS} s)",
                                 sources=["upload"], height=240)  # fmt: skip
                clip = gr.Dropdown(["", *videos], value="", label="or a video of the store", visible=bool(videos))
                text = gr.Textbox(label="Expression", placeholder="the object making a sound before the man",
                                  max_length=MOST_LETTERS)  # fmt: skip
                start = gr.Button("Segment", variant="primary")
            with gr.Column(scale=3, min_width=280):
                overlay = gr.Video(label="What it refers to", interactive=False, height=420)
                told = _html()

        folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))

        def attempt(name: str, uploaded: str | None, clip_id: str, sentence: str) -> tuple[str | None, str]:
            out = folder / "overlay.mp4"  # copied by Gradio before the next attempt begins
            out.unlink(missing_ok=True)
            words = answers.attempt(name, uploaded, store, clip_id, sentence, out)
            return str(out) if out.exists() else None, words

        gr.on([start.click, text.submit], attempt, [run, video, clip, text], [overlay, told], concurrency_limit=1,
              api_visibility="private", show_progress="full")  # fmt: skip


def _connect(answers: Answers, page: gr.Blocks, bar: Bar, clips: ClipsTab, features: FeaturesTab) -> None:
    """Connects the parts that show the chosen clip of the chosen store."""
    store, chosen = bar.store, bar.chosen
    clip = [chosen, clips.clip]
    everything = [bar.head, clips.flag, clips.split, clips.number, features.near, clips.table, *clip]

    def first(name: str) -> tuple[Any, ...]:
        clip_id = answers.first_clip(name)
        near = answers.stream_names(name)
        return (answers.head(name), gr.Dropdown(answers.values(name, "flags"), value=ANY),
                gr.Dropdown(answers.values(name, "splits"), value=ANY), 1,
                gr.Dropdown(near, value=near[0] if near else None), answers.clips(name), clip_id,
                answers.clip(name, clip_id))  # fmt: skip

    def again(name: str) -> tuple[Any, ...]:
        answers.reopen(name)
        return first(name)

    def pick(name: str, event: gr.EventData) -> tuple[str, str]:
        return str(event.picked), answers.clip(name, str(event.picked))

    def move(name: str, streams: list[str], stream: str, event: gr.EventData) -> tuple[str, ...]:
        clip_id = str(event.picked)
        return (clip_id, answers.clip(name, clip_id), answers.streams(clip_id, streams),
                answers.neighbours(name, stream, clip_id))  # fmt: skip

    page.load(first, [store], everything, **PRIVATE)
    store.input(first, [store], everything, **PRIVATE)
    bar.refresh.click(again, [store], everything, **PRIVATE)
    for part in (clips.text.change, clips.flag.input, clips.split.input, clips.number.change):
        part(answers.clips, [store, clips.text, clips.flag, clips.split, clips.number], clips.table,
             trigger_mode="always_last", **PRIVATE)  # fmt: skip
    clips.table.select(pick, [store], clip, **PRIVATE)
    # Only an open tab reads features.
    for part in (features.tab.select, features.streams.input):
        part(answers.streams, [chosen, features.streams], features.pictures, **PRIVATE)
    for part in (features.tab.select, features.near.input):
        part(answers.neighbours, [store, features.near, chosen], features.neighbours, **PRIVATE)
    features.neighbours.select(move, [store, features.streams, features.near],
                               [*clip, features.pictures, features.neighbours], **PRIVATE)  # fmt: skip


def _html(**options: Any) -> gr.HTML:
    return gr.HTML("", elem_classes="refavs", apply_default_css=False, **{"js_on_load": None, **options})


def _any(label: str) -> gr.Dropdown:
    return gr.Dropdown([ANY], value=ANY, label=label, scale=1, min_width=110)


def _page() -> gr.Number:
    return gr.Number(1, label="Page", precision=0, minimum=1, scale=0, min_width=80)


def _first_of_each(choices: list[str]) -> list[str]:
    """A visual and an audio array to begin with."""
    return [found for kind in ("visual/", "audio/") if (found := next((one for one in choices if kind in one), None))]


async def _refuse_address(url: str, cache_dir: str) -> str:
    raise gr.Error("an upload is a file, not an address")
