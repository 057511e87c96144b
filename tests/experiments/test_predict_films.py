"""refavs-predict on films that people really have: HDR, 4K, turned, silent, without a picture, cut off."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from PIL import Image

from experiments.predict.cli import main
from tests.experiments.small_run import make_store, make_trial
from tests.extract.make_videos import write_video

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]
SENTENCE = "the object on the left"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trial(make_store(tmp_path_factory.mktemp("films")), tmp_path_factory.mktemp("trial"))


def predicted(video: Path, trial: Path, *options: str, size: tuple[int, int], num_frames: int = 2) -> dict[str, Any]:
    """The content of prediction.json of a video whose masks and overlay have this size."""
    out = video.with_suffix("")
    assert main([str(video), SENTENCE, "--run", str(trial), "--out", str(out), *options]) == 0
    told = json.loads((out / "prediction.json").read_text())
    assert told["size"] == list(size) and told["num_frames"] == num_frames
    masks = np.stack([np.asarray(Image.open(out / "1" / f"{step}.png")) for step in range(num_frames)])
    assert masks.shape == (num_frames, *size) and masks.any()
    return told


def write_hdr(path: Path) -> Path:
    """Ten bits, BT.2020 and PQ, as a phone records them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=5, options={"preset": "ultrafast", "x265-params": "pools=none"})
        stream.pix_fmt, stream.height, stream.width = "yuv420p10le", 72, 128
        coder = stream.codec_context
        coder.color_primaries, coder.color_trc = ColorPrimaries.BT2020, ColorTrc.SMPTE2084
        coder.colorspace = Colorspace.BT2020
        pixels = np.full((108, 128), 512, np.uint16)
        pixels[:72] = np.linspace(64, 940, 128)
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_hdr_is_read_and_noted_and_its_overlay_stays_hdr(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = predicted(write_hdr(tmp_path / "phone.mov"), trial, size=(72, 128))
    assert told["notes"] == ["picture_hdr"] and "noted: the picture is HDR" in capsys.readouterr().out
    with av.open(str(tmp_path / "phone" / "1" / "overlay.mp4")) as container:
        assert container.streams.video[0].codec_context.color_trc == ColorTrc.SMPTE2084
        shown = next(container.decode(video=0)).to_ndarray()[:36].astype(int)
    assert shown[10, 120] > shown[10, 60] + 20 > shown[10, 4] + 40


def test_4k_has_masks_of_its_size_and_a_smaller_overlay(trial: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "4k.mp4", size=(2160, 3840), rate=1, duration_s=1, options={"movflags": "faststart"})
    predicted(video, trial, size=(2160, 3840), num_frames=1)
    with av.open(str(tmp_path / "4k" / "1" / "overlay.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (1280, 720)


def test_turned_film_has_upright_masks_and_overlay(trial: Path, tmp_path: Path) -> None:
    predicted(write_video(tmp_path / "turned.mp4", size=(72, 128), duration_s=2, rotation=90), trial, size=(128, 72))
    with av.open(str(tmp_path / "turned" / "1" / "overlay.mp4")) as container:
        *_, shown = container.decode(video=0)
        pixels = shown.to_ndarray()[:128].astype(int)
    # The right half of what was recorded is darker; turned clockwise, it is below, where the sentence begins at 83.
    assert (shown.width, shown.height) == (72, 128) and pixels[10:60, 60].mean() > pixels[68:80, 60].mean() + 5


def test_film_without_sound_counts_as_silent(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "mute.mp4", size=(72, 128), duration_s=2, sound_codec=None)
    assert predicted(video, trial, size=(72, 128))["silent"]
    assert "the video has no sound track and counts as silent" in capsys.readouterr().out
    with av.open(str(tmp_path / "mute" / "1" / "overlay.mp4")) as container:
        assert not container.streams.audio


def test_film_without_a_picture_is_one_line(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(track.encode(sound))
        container.mux(track.encode())
    assert main([str(tmp_path / "song.mp4"), SENTENCE, "--run", str(trial), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "song.mp4" in line and "no picture" in line and not (tmp_path / "out").exists()


def test_film_that_ends_in_the_middle_says_so_and_gives_what_is_there(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "cut.mp4", size=(72, 128), duration_s=9, options={"movflags": "faststart"})
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    assert main([str(video), SENTENCE, "--run", str(trial), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cut.mp4" in line and "it is cut off; its first seconds can be taken by --end" in line
    assert not (tmp_path / "out").exists()
    predicted(video, trial, "--end", "2", size=(72, 128))
