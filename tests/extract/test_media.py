"""Decoding of real containers and of the benchmark's files, good and bad."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from extract.media.clip import read_media as read_media_of
from extract.media.forms import IMAGENET_MEAN, IMAGENET_STD, Frames
from extract.media.pictures import fitted
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.steps import Steps
from tests.extract import make_videos
from tests.extract.one_form import SAMPLE_RATE_HZ, Media, read_media

write_video, gray_of, TONE_HZ = make_videos.write_video, make_videos.gray_of, make_videos.TONE_HZ


def read(path: Path, num_frames: int = 10) -> Media:
    return read_media(Clip(id=path.stem, video=path), num_frames, 32)


def grays(media: Media) -> list[int]:
    """Brightness of the left half of each frame."""
    return [round(float(frame[:, :12].mean())) for frame in media.frames]


def seconds_shown(media: Media) -> list[int]:
    steps = [(gray - gray_of(0)) / make_videos.GRAY_STEP for gray in grays(media)]
    assert all(abs(step - round(step)) < 0.15 for step in steps), steps
    return [round(step) for step in steps]


def seconds_by_plain_decoding(path: Path) -> list[int]:
    """The gray of the first frame at or after each second, every frame of the container decoded."""
    import av

    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")[:, :24].mean()) for frame in container.decode(video=0)]
    firsts = [next(gray for time_s, gray in frames if time_s >= second + frames[0][0] - 1e-9) for second in range(10)]
    return [round((gray - gray_of(0)) / make_videos.GRAY_STEP) for gray in firsts]


def tone_hz(media: Media, second: int = 0) -> float:
    window = media.sound[second * SAMPLE_RATE_HZ : (second + 1) * SAMPLE_RATE_HZ]
    return float(np.abs(np.fft.rfft(window)).argmax())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("h264_aac.mp4", {}),
        ("vp9_opus.webm", {"codec": "libvpx-vp9", "sound_codec": "libopus", "sample_rate_hz": 48_000}),
        ("mpeg4_mp3.avi", {"codec": "mpeg4", "sound_codec": "libmp3lame"}),
        ("h264_aac.mkv", {}),
        ("h264_aac.mov", {}),
        ("ntsc.mp4", {"rate": Fraction(30_000, 1001)}),
        ("mono_8khz.mp4", {"sample_rate_hz": 8000}),
        ("stereo_48khz.mp4", {"sample_rate_hz": 48_000, "channels": 2}),
        ("longer.mp4", {"duration_s": 11.5}),
    ],
)
def test_container_gives_each_second_and_its_sound(tmp_path: Path, name: str, settings: dict) -> None:
    path = write_video(tmp_path / name, **settings)
    media = read(path)
    assert media.frames.shape == (10, 32, 32, 3) and media.frames.dtype == np.uint8
    # AVI writes its second frame one place late, so there each second starts with the last frame of the one before.
    expected = [0, *range(9)] if name.endswith(".avi") else list(range(10))
    assert seconds_shown(media) == seconds_by_plain_decoding(path) == expected
    assert media.sound.shape == (10 * SAMPLE_RATE_HZ,) and media.sound.dtype == np.float32
    assert tone_hz(media, 0) == tone_hz(media, 8) == TONE_HZ
    assert not media.silent and media.repeated_from_s is None


def test_variable_frame_rate_is_read_as_players_show_it(tmp_path: Path) -> None:
    times_s = [0, 0.1, 0.5, 1.2, 1.9, 2.0, 4.5, 5, 6, 7.7, 8, 9.3]
    media = read(write_video(tmp_path / "vfr.mp4", times_s=times_s))
    assert seconds_shown(media) == [0, 1, 2, 2, 4, 5, 6, 7, 8, 9]
    assert media.repeated_from_s is None


def test_container_rotated_by_metadata_is_turned_upright(tmp_path: Path) -> None:
    media = read(write_video(tmp_path / "turned.mp4", rotation=90))
    top, bottom = media.frames[0, :12].mean(), media.frames[0, -12:].mean()
    assert bottom == pytest.approx(gray_of(0), abs=3) and top == pytest.approx(gray_of(0) / 2, abs=3)


def test_container_without_sound_track_is_silent(tmp_path: Path) -> None:
    media = read(write_video(tmp_path / "mute.mp4", sound_codec=None))
    assert media.silent and not media.sound.any() and media.sound.shape == (10 * SAMPLE_RATE_HZ,)


def test_container_of_six_seconds_repeats_its_last_frame(tmp_path: Path) -> None:
    media = read(write_video(tmp_path / "short.mp4", duration_s=6))
    assert seconds_shown(media) == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5] and media.repeated_from_s == 6
    assert media.sound[: 5 * SAMPLE_RATE_HZ].any() and not media.sound[7 * SAMPLE_RATE_HZ :].any()


def test_container_with_sound_shorter_than_picture_is_padded(tmp_path: Path) -> None:
    media = read(write_video(tmp_path / "quiet.mp4", duration_s=12, sound_duration_s=3))
    assert seconds_shown(media) == list(range(10)) and media.repeated_from_s is None
    assert tone_hz(media, 2) == TONE_HZ and not media.sound[4 * SAMPLE_RATE_HZ :].any() and not media.silent


def test_container_sound_keeps_its_loudness_and_place(tmp_path: Path) -> None:
    for channels in (1, 2):
        media = read(write_video(tmp_path / f"{channels}.mkv", sound_codec="pcm_s16le", channels=channels))
        expected = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
        np.testing.assert_allclose(media.sound, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("index_last.mp4", {}),
        ("index_first.mp4", {"options": {"movflags": "faststart"}}),
        ("cut.webm", {"codec": "libvpx-vp9", "sound_codec": "libopus", "sample_rate_hz": 48_000}),
        ("cut.avi", {"codec": "mpeg4", "sound_codec": "libmp3lame"}),
    ],
)
def test_truncated_file_is_refused(tmp_path: Path, name: str, settings: dict) -> None:
    path = write_video(tmp_path / name, **settings)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"{name}.*(cut off|stops after).*[.;] [Cc]opy or encode it again"):
        read(path)


def bench_clip(root: Path, *, rate_hz: int = 16_000, channels: int = 1) -> Clip:
    frames = root / "frames"
    frames.mkdir(parents=True)
    for second in range(10):
        Image.new("RGB", (48, 40), (gray_of(second),) * 3).save(frames / f"{second}.jpg", quality=95)
    samples = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(10 * rate_hz) / rate_hz)
    soundfile.write(root / "audio.wav", np.tile(samples[:, None], (1, channels)), rate_hz)
    return Clip(id=root.name, frames=tuple(frames / f"{second}.jpg" for second in range(10)), audio=root / "audio.wav")


@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2), (8000, 1)])
def test_benchmark_clip_gives_its_frames_and_sound(tmp_path: Path, rate_hz: int, channels: int) -> None:
    media = read_media(bench_clip(tmp_path / "clip", rate_hz=rate_hz, channels=channels), 10, 32)
    assert seconds_shown(media) == list(range(10))
    expected = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    inner = slice(1000, -1000)
    np.testing.assert_allclose(media.sound[inner], expected[inner], atol=5e-3)
    assert not media.silent and media.repeated_from_s is None


def test_benchmark_clip_without_sound_is_silent(tmp_path: Path) -> None:
    clip = bench_clip(tmp_path / "clip")
    assert clip.audio is not None
    clip.audio.unlink()
    media = read_media(clip, 10, 32)
    assert media.silent and not media.sound.any()


def test_benchmark_clip_names_a_damaged_frame(tmp_path: Path) -> None:
    clip = bench_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "frames" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"3\.jpg cannot be read .*; replace the file"):
        read_media(clip, 10, 32)


def test_benchmark_clip_names_damaged_sound(tmp_path: Path) -> None:
    clip = bench_clip(tmp_path / "clip")
    assert clip.audio is not None
    clip.audio.write_bytes(b"no sound at all")
    with pytest.raises(DatasetError, match=r"audio\.wav cannot be read .* accepted: a WAV file of any rate"):
        read_media(clip, 10, 32)


def test_normalised_frames_are_those_of_imagenet() -> None:
    frames = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    expected = (frames.double().numpy() / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(Frames(size=5).normalised(frames).permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


def test_padding_is_zero_behind_the_normalisation() -> None:
    form = Frames(size=8, fit="pad", alpha=True)
    frames = torch.from_numpy(fitted(Image.new("RGB", (40, 20), "white"), form).copy())[None]
    assert frames[0].shape == form.shape == (8, 8, 4) and (frames[0, :4, :, 3] == 255).all()
    normal = form.normalised(frames)
    assert not normal[:, :, 4:].any()
    assert torch.equal(normal[:, :, :4], Frames(size=8).normalised(frames[..., :3])[:, :, :4])


def test_pixels_are_resampled_as_asked() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    expected = picture.resize((5, 5), Image.Resampling.BICUBIC)
    assert np.array_equal(fitted(picture, Frames(size=5, resample="bicubic")), expected)


def test_picture_is_squashed_padded_or_cropped() -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (10, 0, 30, 20))
    squashed, padded, cropped = (fitted(picture, Frames(size=8, fit=fit)) for fit in ("squash", "pad", "crop"))
    assert squashed.shape == padded.shape == cropped.shape == (8, 8, 3) and (squashed[:, 0] > 200).all()
    assert (padded[:3, 0] > 200).all() and not padded[4:].any()  # black below
    assert (cropped[:, :, 0] == 255).all() and not cropped[:, 1:-1, 1].any()  # the middle alone


@pytest.mark.long
def test_clip_is_decoded_once_for_every_form_and_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", sample_rate_hz=48_000)
    forms, rates_hz = [Frames(size=32), Frames(size=24, fit="crop")], [48_000, 16_000]
    for clip in (Clip(id="a", video=path), bench_clip(tmp_path / "clip", rate_hz=48_000)):
        media = read_media_of(clip, Steps(10), forms, rates_hz)
        assert {form: frames.shape for form, frames in media.frames.items()} == {
            forms[0]: (10, 32, 32, 3), forms[1]: (10, 24, 24, 3)}
        assert {rate_hz: len(sound) for rate_hz, sound in media.sound.items()} == {48_000: 480_000, 16_000: 160_000}
        alone = read_media(clip, 10, 32)
        assert np.array_equal(media.frames[forms[0]], alone.frames) and np.array_equal(media.sound[16_000], alone.sound)
        assert np.abs(np.fft.rfft(media.sound[48_000][:48_000])).argmax() == TONE_HZ
    monkeypatch.setattr("extract.media.pictures.fitted", lambda *_: pytest.fail("nobody asks for frames"))
    heard = read_media_of(Clip(id="a", video=path), Steps(10), [], [16_000])
    assert np.array_equal(heard.sound[16_000], read_sound(path)) and not heard.frames and heard.repeated_from_s is None


def read_sound(path: Path) -> np.ndarray:
    return read_media_of(Clip(id="a", video=path), Steps(10), [], [16_000, 8_000]).sound[16_000]


@pytest.mark.parametrize("error", [ValueError("an odd packet"), EOFError("an odd packet"), OSError(5, "an odd packet")])
def test_odd_container_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decode(*arguments: object) -> float:
        raise error

    make_videos.write_video(tmp_path / "odd.mp4")
    monkeypatch.setattr("extract.media.video.decode", decode)
    with pytest.raises(DatasetError, match=r"odd\.mp4 is cut off, damaged or not a video \(an odd packet\)"):
        read(tmp_path / "odd.mp4")


def test_video_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.mp4 .* \(No such file or directory\)"):
        read(tmp_path / "gone.mp4")


def test_odd_sound_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_wave(*arguments: object, **settings: object) -> None:
        raise ValueError("an odd block")

    clip = bench_clip(tmp_path)
    monkeypatch.setattr("soundfile.SoundFile.read", read_wave)
    with pytest.raises(DatasetError, match=r"\.wav cannot be read \(an odd block\)"):
        read_media(clip, 10, 32)
