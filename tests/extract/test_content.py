"""Content keys: clips with identical bytes have the same keys, regardless of their names."""

from pathlib import Path

import pytest

from extract.pipeline.content import SILENCE, content_of, contents_of
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.steps import Steps


def make_clip(root: Path, name: str, picture: bytes, sound: bytes | None = b"sound") -> Clip:
    folder = root / name
    (folder / "frames").mkdir(parents=True)
    frames = tuple(folder / "frames" / f"{second}.jpg" for second in range(2))
    for second, path in enumerate(frames):
        path.write_bytes(picture + bytes([second]))
    if sound is not None:
        (folder / "audio.wav").write_bytes(sound)
    return Clip(id=name, frames=frames, audio=folder / "audio.wav", root=root)


def make_video(root: Path, name: str, content: bytes) -> Clip:
    (root / f"{name}.mp4").write_bytes(content)
    return Clip(id=name, video=root / f"{name}.mp4", root=root)


def test_keys_of_a_video_are_its_files(tmp_path: Path) -> None:
    clips = [make_video(tmp_path, name, data) for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2"))]
    one, same, other = (content_of(clip, Steps(2)) for clip in clips)
    assert one == same != other and one.frames == one.sound == one.key("visual") == one.key("audio")


def test_keys_of_a_clip_tell_frames_and_sound_apart(tmp_path: Path) -> None:
    one, sounds, silent = (make_clip(tmp_path, n, b"p", s) for n, s in (("a", b"1"), ("b", b"2"), ("c", None)))
    keys = [content_of(clip, Steps(2)) for clip in (one, sounds, silent)]
    assert len({content.frames for content in keys}) == 1
    assert len({content.sound for content in keys}) == 3 and keys[2].sound == SILENCE
    assert content_of(make_clip(tmp_path, "d", b"q", b"1"), Steps(2)).frames != keys[0].frames
    assert content_of(one, Steps(1)).frames != keys[0].frames  # another number of seconds


def test_clips_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, name, b"p") for name in "ab"]
    (tmp_path / "a" / "frames" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1\.jpg is missing"):
        content_of(clips[0], Steps(2))
    counted = []
    found, unreadable = contents_of(clips, Steps(2), lambda: counted.append(1))
    assert found == {"b": content_of(clips[1], Steps(2))} and list(unreadable) == ["a"] and len(counted) == 2
    assert "1.jpg is missing" in unreadable["a"]
