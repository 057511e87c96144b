"""Overlay videos of unusual videos: every second shows the same picture that the encoders got."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from jaxtyping import Bool

from experiments.predict.overlay_video import Overlay, write_overlay_videos
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
