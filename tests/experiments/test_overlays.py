"""Overlay pictures: which expressions, and what is drawn."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.grid.config import TrainConfig, TrialConfig
from experiments.training import overlays
from experiments.training.evaluate import TrainedHead
from experiments.training.loop import build_model
from refavs.config import replace
from refavs.steps import Steps
from refavs.store import FeatureStore
from tests.experiments.small_store import SECONDS, make_store

SMALL = {"model.num_layers": 1, "model.num_heads": 2, "model.decoder_layers": 0, "model.visual_downsample": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


def test_pictures_are_of_the_same_two_expressions_of_test_s(store: FeatureStore, tmp_path: Path) -> None:
    names, folders = [], [tmp_path / str(seed) for seed in (0, 1)]
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        heads.append(TrainedHead(TrainConfig(), build_model(replace(TrialConfig(), SMALL), store)))
    alone = overlays.write_overlays([tmp_path / "alone"], heads[1:], store, torch.device("cpu"))[0]
    written = overlays.write_overlays(folders, heads, store, torch.device("cpu"))
    assert not isinstance(alone, str) and not isinstance(written[1], str)
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in written[1]]
    for folder, files in zip(folders, written, strict=True):
        assert not isinstance(files, str)
        assert sorted(folder.iterdir()) == files
        names.append([file.name for file in files])
        width = SECONDS * (overlays.FRAME_PX + overlays.GAP_PX) - overlays.GAP_PX
        for file in files:
            with Image.open(file) as picture:
                assert picture.size == (width, overlays.FRAME_PX + overlays.CAPTION_PX)
    assert names[0] == names[1] and len(set(names[0])) == 2 and all("test_s" in name for name in names[0])
    facts = store.expressions.iloc[overlays.chosen_rows(store)]
    assert facts["dimension"].nunique() == 2 and facts["clip_id"].nunique() == 2


def test_picture_fills_the_prediction_and_outlines_the_target() -> None:
    frame = Image.new("RGB", (overlays.FRAME_PX,) * 2, (100, 100, 100))
    pred, target = np.zeros((1, 16, 16), bool), np.zeros((1, 16, 16), bool)
    pred[0, :8], target[0, 8:] = True, True
    pixels = np.asarray(overlays.draw([frame], pred, target, "the left one", "uid"))[overlays.CAPTION_PX :]
    assert pixels[10, 80, 0] > 150 > pixels[10, 80, 1]
    assert tuple(pixels[81, 80]) == overlays.TARGET and tuple(pixels[120, 80]) == (100, 100, 100)


@pytest.mark.parametrize("layout", [None, "ref-avs-bench"])
def test_picture_shows_the_frame_where_the_source_is_there(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str | None
) -> None:
    folder = tmp_path / "media" / "clip" / "frames"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / "0.jpg", quality=100)
    (tmp_path / "metadata.csv").touch()  # by which it is recognised
    monkeypatch.setitem(store.attributes, "extraction", {"source": str(tmp_path), "layout": layout})
    first, second = overlays.frame_pictures(store, "clip", Steps(2))
    assert first.getpixel((5, 5))[2] > 200  # type: ignore[index]
    assert second.getpixel((5, 5)) == (overlays.BACKDROP,) * 3


@pytest.mark.parametrize("content", ["text", "cut", "bomb", "broken chunk", "folder", "pipe", "long name"])
def test_picture_that_cannot_be_read_is_a_plain_backdrop(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    clip = "c" * 250 if content == "long name" else "clip"
    path = tmp_path / "media" / clip / "frames" / "0.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), (0, 0, 255)).save(path, format="PNG")
    data = path.read_bytes()
    if content in ("folder", "pipe"):
        path.unlink()
        path.mkdir() if content == "folder" else os.mkfifo(path)
    elif content != "long name":
        size = (200_000).to_bytes(4, "big")
        path.write_bytes({
            "text": b"no picture", "cut": data[:60], "bomb": data[:16] + size * 2 + data[24:],
            "broken chunk": data[:33] + b"\xff" * 40,
        }[content])  # fmt: skip
    monkeypatch.setitem(store.attributes, "extraction", {"source": str(tmp_path), "layout": "ref-avs-bench"})
    (read,) = overlays.frame_pictures(store, clip + "c" * 20 if content == "long name" else clip, Steps(1))
    assert read.getpixel((5, 5)) == (overlays.BACKDROP,) * 3


def test_file_name_keeps_to_the_folder() -> None:
    assert overlays.safe_name("../a b/ü_1") == "___a_b_ü_1"
    for letter in "aü日":
        names = {overlays.safe_name(letter * number) for number in range(60, 256)}
        assert len(names) == 196 and max(len(name.encode()) for name in names) <= 200


def test_picture_failures_are_reported_and_not_raised(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [TrainedHead(TrainConfig(), build_model(replace(TrialConfig(), SMALL), store)) for _ in range(2)]
    folders, device = [tmp_path / "a", tmp_path / "b"], torch.device("cpu")
    (tmp_path / "b").write_text("a file in the place of the folder")
    first, second = overlays.write_overlays(folders, heads, store, device)
    assert len(first) == 2 and isinstance(second, str) and second.startswith("FileExistsError: ")

    def broken(*arguments: object) -> None:
        raise UnicodeEncodeError("latin-1", "x", 0, 1, "no such letter")

    monkeypatch.setattr(overlays, "draw", broken)
    assert [isinstance(one, str) for one in overlays.write_overlays(folders, heads, store, device)] == [True, True]

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no 90 GiB")

    monkeypatch.setattr(overlays, "draw", full)
    assert overlays.write_overlays(folders[:1], heads[:1], store, device) == ["OutOfMemoryError: no 90 GiB"]
    with pytest.raises(torch.OutOfMemoryError):
        overlays.write_overlays(folders, heads, store, device)
