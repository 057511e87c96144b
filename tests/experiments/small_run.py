"""A small store of one video, and a trial's folder whose head has random weights."""

from pathlib import Path

import torch

from extract.cli import build_parser, prepared
from refavs.model.checkpoint import save_model
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.model.heads.protocol import Head
from refavs.store import FeatureStore
from tests.extract.command import extract
from tests.extract.make_videos import write_video

SENTENCES = ["the object on the left", "the sounding object"]
HEAD = {"num_layers": 1, "num_queries": 4, "num_heads": 4, "feedforward_channels": 32, "decoder_layers": 1,
        "decoder_feedforward_channels": 32}  # fmt: skip


def make_store(root: Path, *options: str, duration_s: float = 10) -> FeatureStore:
    """One video with two sentences, extracted with these options of the command; without any by preset tiny."""
    (root / "videos").mkdir()
    write_video(root / "videos" / "clip.mp4", size=(72, 128), duration_s=duration_s)
    (root / "sentences.csv").write_text("video,exp\n" + "".join(f"clip.mp4,{text}\n" for text in SENTENCES))
    run = prepared(build_parser().parse_args(
        [str(root / "videos"), str(root / "store"), "--expressions", str(root / "sentences.csv"),
         *(options or ("--preset", "tiny"))]
    ))  # fmt: skip
    assert not any(result.error for result in extract(run.source, root / "store", run.streams))
    return FeatureStore(root / "store")


def make_trial(store: FeatureStore, folder: Path) -> Path:
    """A trial's folder with a head of random weights that finds something."""
    torch.manual_seed(0)
    model = EEMC.from_store(store, EEMCOptions(**HEAD))
    with torch.no_grad():
        model.decoder.class_head.bias.copy_(torch.tensor([4.0, -4.0]))
    return save_trial(store, folder, model)


def save_trial(store: FeatureStore, folder: Path, model: Head) -> Path:
    """A trial's folder with this head."""
    facts = {"store": store.fingerprint, "encoders": store.encoders, "seconds": store.seconds,
             "mask_size": store.mask_size}  # fmt: skip
    save_model(folder / "checkpoint", model, facts)
    return folder


def video_of(store: FeatureStore) -> Path:
    """The video of `make_store`."""
    return Path(store.location).parent / "videos" / "clip.mp4"
