"""Stores of 2 and 0.5 frames per second, with masks of several shapes: from films to trained heads and their pages."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.grid.expand import expand
from experiments.predict.cli import main
from experiments.predict.segmenter import masks_of
from experiments.records.stores import features_in
from experiments.report.gallery import make_gallery
from experiments.report.tables import GallerySource
from experiments.training.initial_weights import with_checkpoints
from experiments.training.loop import train
from extract import cli as extract_cli
from refavs.data.batches import collate
from refavs.data.layouts.protocol import Clip, Layout, Object, Source, expression_table
from refavs.model.checkpoint import load_model
from refavs.store import FeatureStore
from tests.experiments.test_baseline_trial import HEADS
from tests.extract.command import in_this_process, run_with
from tests.extract.make_videos import write_video
from tests.refavs.test_layouts import installed

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]
FILMS = {"fit": (48, 80), "dev": (32, 48), "exam": (24, 40)}  # height and width
RATES = {2.0: 2, 0.5: 4}  # and the seconds of a clip
TEXT = "the bright half"
SMALL = {
    "eemc": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "feedforward_channels": 16, "decoder_layers": 1,
             "decoder_feedforward_channels": 16},
    "avsegformer": HEADS["avsegformer"],
}  # fmt: skip


class Cinema(Layout):
    """A film for each split, with four masks a second; the object is the left half from 0.5 s on."""

    accepts = "a folder with fit.mp4"

    def detect(self, root: Path) -> bool:
        return (root / "fit.mp4").is_file()

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        rows = [{"uid": name, "clip_id": name, "fid": 0, "split": name, "text": TEXT} for name in FILMS]
        return Source(
            root=root, clips=tuple(Clip(id=name, video=root / f"{name}.mp4", fps=4.0, root=root) for name in FILMS),
            objects=tuple(Object(clip_id=name, fid=0, root=root, masks={
                number: functools.partial(left_half, *size, number >= 2) for number in range(16)})
                for name, size in FILMS.items()),
            expressions=expression_table(rows), splits={"fit": "train", "dev": "validation", "exam": "test"},
        )  # fmt: skip


def left_half(height: int, width: int, shown: bool) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = shown
    return mask


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder, fps = tmp_path_factory.mktemp("rates"), request.param
    (folder / "films").mkdir()
    for name, size in FILMS.items():
        write_video(folder / "films" / f"{name}.mp4", size=size, duration_s=4, grays_per_s=2)
    with pytest.MonkeyPatch().context() as patched:
        installed(patched, cinema=f"{__name__}:Cinema")
        run_with(patched, in_this_process)
        streams = "tiny-swin/pixel_decoder,tiny-swin/backbone,tiny-vggish,tiny-roberta"
        command = [str(folder / "films"), str(folder / "store"), "--streams", streams, "--weights", "random",
                   "--mask-size", "native", "--seconds", str(RATES[fps]), "--fps", str(fps)]  # fmt: skip
        assert extract_cli.main(command) == 0
    return FeatureStore(folder / "store")


@pytest.mark.parametrize(("store", "head"), [
    (2.0, "eemc"), (0.5, "avsegformer"),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2.0, "avsegformer"), (0.5, "eemc"))),
], indirect=["store"])  # fmt: skip
def test_head_is_trained_drawn_and_used_at_the_rate_of_its_store(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    installed(monkeypatch, cinema=f"{__name__}:Cinema")
    visual = "tiny-swin/pixel_decoder" if head == "eemc" else "tiny-swin/backbone"
    base: dict[str, Any] = {f"model.{name}": value for name, value in SMALL[head].items()}
    base |= {"model.head": head, "model.visual": visual, "train.epochs": 1, "train.frames": 1, "loss.num_points": 16}
    (trial,) = with_checkpoints(expand("g", {"base": base}, "g.yaml", {}), features_in(store)).trials
    store = FeatureStore(store.location, {"visual": visual})
    metrics = train(trial.config, store, tmp_path)["metrics"]
    assert {"exam/J", "exam/F"} <= metrics.keys() and (tmp_path / "overlays").is_dir()
    assert store.mask_size == FILMS["fit"] and len(store.steps) == round(RATES[store.steps.fps] * store.steps.fps)

    gallery = make_gallery(GallerySource(
        label=head, statistics=tmp_path / "statistics.parquet", checkpoint=tmp_path / "checkpoint",
        store=store.location, fingerprint=store.fingerprint,
    ))  # fmt: skip
    assert not gallery.reason
    (card,) = gallery.groups[0].cards
    times = [step / store.steps.fps for step in range(len(store.steps))]
    assert [step.time_s for step in card.steps] == times and not card.note
    assert [step.verdict in ("rightly empty", "false object") for step in card.steps] == [time < 0.5 for time in times]

    model = load_model(tmp_path / "checkpoint").eval()
    (row,) = store.expressions.index[store.expressions["split"] == "exam"]
    with torch.no_grad():
        (probs,) = model.probs(model(collate([store[row]])), store.mask_size)
    out = tmp_path / "out"
    video = Path(store.location).parent / "films" / "exam.mp4"
    assert main([str(video), TEXT, "--run", str(tmp_path), "--out", str(out), "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (out / "1" / "masks.jsonl").read_text().splitlines()]
    assert [line["time_s"] for line in lines] == [step / store.steps.fps for step in range(round(4 * store.steps.fps))]
    found = np.stack([np.asarray(Image.open(out / "1" / f"{step}.png")) > 0 for step in range(len(times))])
    assert np.array_equal(found, masks_of(probs, *FILMS["exam"])) and (out / "1" / "overlay.mp4").is_file()
