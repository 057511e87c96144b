"""Overlay videos of unusual videos: every second shows the same picture that the encoders got."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from jaxtyping import Bool

from experiments.predict.overlay_video import Overlay, write_overlay_videos
from experiments.training.overlays import PREDICTION
from extract.media.film_stream import FilmStream, Span
from tests.experiments.long_films import greatest_shift_s, write_blinking_film
from tests.extract import film_oracle as oracle
from tests.extract import film_variants
from tests.extract.make_videos import write_video

pytestmark = pytest.mark.long  # for what its fixtures make


@pytest.mark.parametrize("name", [
    "picture changes its size.ts", "two parts joined.ts", "picture 2 s late.mkv", "cut between key pictures.mp4",
    "transposed.mp4", "preview of one larger picture first.mp4", "three seconds were lost.ts", "libx264 aac.avi",
])  # fmt: skip
def test_overlay_shows_what_the_encoders_were_given(tmp_path: Path, name: str) -> None:
    variant = film_variants.VARIANTS[name]
    path = tmp_path / f"film{variant.suffix}"
    variant.build(path)
    film = FilmStream(path, Span(end_s=10))
    film.num_steps = 10
    height, width = film.size
    masks = iter(np.zeros((10, height, width), bool))
    write_overlay_videos(film, [Overlay(tmp_path / "overlay.mp4", "", masks)])
    seconds: dict[int, int] = {}
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            assert pixels.shape == (height, width, 3) and frame.time is not None
            seconds.setdefault(int(frame.time + 1e-6), oracle.second_of_grey(oracle.centre(pixels)))
            if len(seconds) == 1:
                assert oracle.marked_corners(pixels) == variant.corners
    assert tuple(seconds[second] for second in range(10)) == variant.truth.pictures


def test_each_mask_is_shown_where_pictures_are_rare_or_end(tmp_path: Path) -> None:
    times_s = [1.4, 1.9, 2.4, 5.6]  # from the first one on 0, 0.5, 1 and 4.2
    video = write_video(tmp_path / "rare.mkv", times_s=times_s, size=(64, 96), sound_codec=None)
    folder = tmp_path / "12:30"
    folder.mkdir()
    film = FilmStream(video)
    film.num_steps = 10

    def masks() -> Iterator[Bool[np.ndarray, "h w"]]:
        for second in range(10):
            mask = np.zeros((64, 96), bool)
            mask[:, 9 * second : 9 * second + 9] = True
            yield mask

    write_overlay_videos(film, [Overlay(folder / "overlay.mp4", "", masks())])
    with av.open(f"file:{folder / 'overlay.mp4'}") as container:
        shown = {
            float(frame.pts * frame.time_base): frame.to_ndarray(format="rgb24").astype(int)
            for frame in container.decode(video=0)
        }
    for second in range(10):
        time_s = max(time for time in shown if time <= second + 0.5)
        red = (shown[time_s][..., 0] - shown[time_s][..., 2]).mean(0)
        assert abs(int(red.argmax()) - (9 * second + 4)) < 6, (second, time_s)


@pytest.mark.parametrize("start_s", [0, 3.5])
def test_sound_stays_with_the_picture(tmp_path: Path, start_s: float) -> None:
    video = write_blinking_film(tmp_path / "film.mp4", 12, size=(64, 96))
    film = FilmStream(video, Span(start_s=start_s))
    masks = iter(np.zeros((12, 64, 96), bool))
    write_overlay_videos(film, [Overlay(tmp_path / "overlay.mp4", "a sentence", masks)])
    assert greatest_shift_s(tmp_path / "overlay.mp4") < 1001 / 30_000


@pytest.mark.parametrize(("form", "size"), [
    ("yuv420p", (64, 96)), ("yuvj420p", (64, 96)), ("yuv420p10le", (64, 96)), ("yuv444p", (65, 97)),
    ("bgr0", (64, 96)), ("yuv420p", (1440, 2560)),
])  # fmt: skip
def test_overlay_has_the_colours_of_the_film(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    bands = np.array([[250, 5, 5], [5, 250, 5], [5, 5, 250], [250, 250, 250], [5, 5, 5], [120, 60, 200]], np.uint8)
    picture = np.repeat(bands[None], size[0], 0).repeat(-(-size[1] // len(bands)), 1)[:, : size[1]]
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("ffv1" if form != "yuvj420p" else "mjpeg", rate=2)
        stream.pix_fmt, stream.height, stream.width = form, *size
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=form)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    film = FilmStream(tmp_path / "film.mkv")
    mask = np.zeros(size, bool)
    mask[: size[0] // 2] = True
    write_overlay_videos(film, [Overlay(tmp_path / "overlay.mp4", "", iter([mask]))])
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    centres = [round((number + 0.5) * shown.shape[1] / len(bands)) for number in range(len(bands))]
    below, above = shown[shown.shape[0] * 3 // 4, centres], shown[shown.shape[0] // 4, centres]
    assert np.abs(below - bands).max() < 16
    assert np.abs(above - (0.55 * bands + 0.45 * np.array(PREDICTION))).max() < 24
