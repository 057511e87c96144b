"""A video in blocks: the same frames and sound as in one piece, wherever it is cut."""

from pathlib import Path

import numpy as np
import pytest

from extract.media.clip import read_media
from extract.media.film_stream import FilmStream, Span
from extract.media.forms import Frames
from refavs.data.layouts import Clip
from refavs.errors import ConfigError, DatasetError
from refavs.steps import Steps
from tests.extract.make_videos import gray_of, write_video

FORM = Frames(size=8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(
        tmp_path_factory.mktemp("film") / "film.mp4", duration_s=12.0, sample_rate_hz=44_100, size=(16, 32)
    )


def grays(frames: np.ndarray) -> list[int]:
    """The second that each frame shows."""
    return [int((np.abs(frame[:, 0].mean() - [gray_of(second) for second in range(12)])).argmin()) for frame in frames]


@pytest.mark.parametrize("num_steps", [1, 3, 10, 12, 20])
def test_blocks_hold_what_one_read_holds(video: Path, num_steps: int) -> None:
    whole = read_media(Clip(id="film", video=video), Steps(12), [FORM], [16_000])
    stream = FilmStream(video)
    assert stream.size == (16, 32) and not stream.silent and stream.num_steps == 12
    blocks = list(stream.blocks(num_steps, [FORM], [16_000]))
    assert [block.first for block in blocks] == list(range(0, 12, num_steps))
    assert [block.is_last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert np.array_equal(np.concatenate([block.frames[FORM] for block in blocks]), whole.frames[FORM])
    for block in blocks:
        wanted = whole.sound[16_000][16_000 * block.first : 16_000 * (block.first + len(block))]
        assert np.array_equal(block.sound[16_000], wanted)
    assert stream.notes == ()


def test_part_of_a_video_at_another_rate(video: Path) -> None:
    stream = FilmStream(video, Span(start_s=2.5, end_s=8.5, rate=2))
    (block,) = stream.blocks(40, [FORM], [16_000])
    assert stream.notes == ()
    assert stream.num_steps == 12 and grays(block.frames[FORM]) == [2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    whole = read_media(Clip(id="film", video=video), Steps(12), [], [16_000]).sound[16_000]
    np.testing.assert_allclose(block.sound[16_000], whole[40_000 : 40_000 + 104_000], atol=5e-3)  # half a sample


def test_video_that_declares_no_length_and_shows_pictures_rarely(tmp_path: Path) -> None:
    path = write_video(tmp_path / "rare.mkv", times_s=[0.0, 3.4, 7.2, 11.0], size=(16, 32), sound_codec=None)
    stream = FilmStream(path)
    blocks = list(stream.blocks(4, [FORM], [16_000]))
    assert stream.silent and sum(map(len, blocks)) == 12
    assert grays(np.concatenate([block.frames[FORM] for block in blocks])) == [0, 0, 0, 3, 3, 3, 3, 7, 7, 7, 7, 11]
    assert not any(block.sound[16_000].any() for block in blocks)
    assert "picture_held" in stream.notes


def test_unusable_parts_and_files_are_refused(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--start 12 lies behind the end of .*film.mp4, which is 12.0 s long"):
        FilmStream(video, Span(start_s=12))
    content = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cut\.mp4"):
        FilmStream(tmp_path / "cut.mp4")
