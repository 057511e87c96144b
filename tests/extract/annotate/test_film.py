"""The media of a project: frames and sound of films of any rate, copies of a benchmark's, and the scenes."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from extract.annotate.film import write_media
from extract.annotate.records import ClipFiles, Scene
from extract.annotate.scenes import ColourCuts
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from tests.extract.annotate.films import picture_at, sound_of, write_film

pytestmark = pytest.mark.long


def cuts() -> ColourCuts:
    return ColourCuts(27.0)


@pytest.mark.parametrize(("fps", "cuts_s"), [(12, (4.5,)), (7, (3.0, 6.5))])
def test_frames_are_the_first_of_each_second(fps: int, cuts_s: tuple[float, ...], tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", cuts_s, fps)
    files = ClipFiles(tmp_path / "clip")
    scenes = write_media(Clip(id="a", video=path), files, 10, cuts())
    assert files.scenes() == scenes and (scenes.width, scenes.height) == (160, 96)
    for second in range(10):
        found = np.asarray(Image.open(files.frame(second))).astype(int)
        assert np.abs(found - picture_at(second, cuts_s)).mean() < 6, second
    np.testing.assert_allclose(scenes.cuts_s, cuts_s, atol=1 / fps)
    starts = [0, *(int(np.ceil(cut_s)) for cut_s in cuts_s)]
    assert [scene.first for scene in scenes.scenes] == starts


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_keeps_its_rate_channels_and_samples(channels: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", channels=channels, seconds=4, rate_hz=22_050)
    files = ClipFiles(tmp_path / "clip")
    write_media(Clip(id="a", video=path), files, 3, cuts())
    samples, rate_hz = soundfile.read(files.sound, dtype="int16", always_2d=True)
    assert rate_hz == 22_050 and soundfile.info(files.sound).subtype == "PCM_16"
    assert np.array_equal(samples, sound_of(3, 22_050, channels))


def test_a_short_silent_film_repeats_its_last_frame_and_has_no_sound(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", seconds=2, channels=0)
    files = ClipFiles(tmp_path / "clip")
    scenes = write_media(Clip(id="a", video=path), files, 4, cuts())
    assert not files.sound.exists() and scenes.scenes == (Scene(first=0, last=3),)
    last, before = (np.asarray(Image.open(files.frame(second))) for second in (3, 2))
    assert np.array_equal(last, before)
    assert any("ends before second 2" in note for note in scenes.notes)


def test_a_film_cut_off_leaves_no_scenes(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", seconds=4)
    path.write_bytes(path.read_bytes()[:3000])
    files = ClipFiles(tmp_path / "clip")
    with pytest.raises(DatasetError, match="video"):
        write_media(Clip(id="a", video=path), files, 3, cuts())
    assert not (files.folder / "scenes.json").exists()


def bench(root: Path, cut: int) -> Clip:
    frames = []
    for second in range(4):
        path = root / "frames" / f"{second}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture_at(second, (cut,))).save(path, quality=90)
        frames.append(path)
    soundfile.write(root / "audio.wav", sound_of(4, 16_000, 2), 16_000)
    return Clip(id="a", frames=tuple(frames), audio=root / "audio.wav", root=root)


def test_a_benchmark_is_copied_and_its_cuts_are_hints(tmp_path: Path) -> None:
    clip = bench(tmp_path / "bench", cut=2)
    files = ClipFiles(tmp_path / "clip")
    scenes = write_media(clip, files, 4, cuts())
    assert all(files.frame(second).read_bytes() == path.read_bytes() for second, path in enumerate(clip.frames))
    assert clip.audio is not None and files.sound.read_bytes() == clip.audio.read_bytes()
    assert scenes.scenes == (Scene(first=0, last=3),) and scenes.method == "none (hints)" and scenes.cuts_s == ()
    hints = [note for note in scenes.notes if "perhaps a cut" in note]
    assert len(hints) == 1 and "before second 2" in hints[0]


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    clip = bench(tmp_path / "bench", cut=9)
    Image.new("RGB", (32, 32)).save(clip.frames[2])
    with pytest.raises(DatasetError, match=r"2.jpg has 32 x 32 pixels, the first frame of the clip 160 x 96"):
        write_media(clip, ClipFiles(tmp_path / "clip"), 4, cuts())
