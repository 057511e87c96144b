"""Overlay videos of unusual videos: every second shows the same picture that the encoders got."""

from pathlib import Path

import av
import numpy as np
import pytest

from experiments.predict.overlay_video import SOUND_HZ, frame_size, write_overlay_video
from extract.media.clip import read_media
from refavs.data.layouts import Clip
from tests.extract import film_oracle as oracle
from tests.extract import film_variants

pytestmark = pytest.mark.long  # for what its fixtures make



@pytest.mark.parametrize("name", [
    "picture changes its size.ts", "two parts joined.ts", "picture 2 s late.mkv", "cut between key pictures.mp4",
    "transposed.mp4", "preview of one larger picture first.mp4", "three seconds were lost.ts", "libx264 aac.avi",
])  # fmt: skip
def test_overlay_shows_what_the_encoders_were_given(tmp_path: Path, name: str) -> None:
    variant = film_variants.VARIANTS[name]
    path = tmp_path / f"film{variant.suffix}"
    variant.build(path)
    sound = read_media(Clip(id="film", video=path), 10, [], [SOUND_HZ]).sound[SOUND_HZ]
    height, width = frame_size(path)
    write_overlay_video(tmp_path / "overlay.mp4", path, np.zeros((10, height, width), bool), sound)
    seconds: dict[int, int] = {}
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            assert pixels.shape == (height, width, 3) and frame.time is not None
            seconds.setdefault(int(frame.time + 1e-6), oracle.second_of_grey(oracle.centre(pixels)))
            if len(seconds) == 1:
                assert oracle.marked_corners(pixels) == variant.corners
    assert tuple(seconds[second] for second in range(10)) == variant.truth.pictures
