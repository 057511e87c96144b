"""Clips of the same bytes: who shares what with whom, whatever was interrupted when."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from extract.pipeline import dedup as identity
from extract.pipeline.dedup import AUDIO, VISUAL, digests_of, input_digests, shared_inputs
from refavs.data.layouts import Clip
from refavs.errors import DatasetError


def make_clip(root: Path, name: str, picture: bytes, sound: bytes | None = b"sound") -> Clip:
    folder = root / name
    (folder / "frames").mkdir(parents=True)
    for second in range(2):
        (folder / "frames" / f"{second}.jpg").write_bytes(picture + bytes([second]))
    if sound is not None:
        (folder / "audio.wav").write_bytes(sound)
    frames = tuple(folder / "frames" / f"{second}.jpg" for second in range(2))
    return Clip(id=name, frames=frames, audio=folder / "audio.wav", root=root)


def make_video(root: Path, name: str, content: bytes) -> Clip:
    (root / f"{name}.mp4").write_bytes(content)
    return Clip(id=name, video=root / f"{name}.mp4", root=root)


def shares(clips: list[Clip], stored: Mapping[str, Mapping[str, str]] | None = None, shared=None) -> dict:
    return shared_inputs(clips, 2, stored or {}, shared or {})


def test_digests_of_a_video_are_the_files(tmp_path: Path) -> None:
    one, same, other = (make_video(tmp_path, name, data) for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")))
    assert input_digests(one, 2) == input_digests(same, 2) != input_digests(other, 2)
    assert len(set(input_digests(one, 2).values())) == 1


def test_digests_of_a_clip_tell_frames_and_sound_apart(tmp_path: Path) -> None:
    one, sounds, silent = (make_clip(tmp_path, n, b"p", s) for n, s in (("a", b"1"), ("b", b"2"), ("c", None)))
    digests = [input_digests(clip, 2) for clip in (one, sounds, silent)]
    assert len({facts["visual_input"] for facts in digests}) == 1
    assert len({facts["audio_input"] for facts in digests}) == 3 and digests[2]["audio_input"] == ""
    (tmp_path / "a" / "frames" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1\.jpg cannot be read"):
        input_digests(one, 2)
    assert digests_of([one, sounds], 2) == {"b": digests[1]}


def test_same_video_under_two_names_shares_everything(tmp_path: Path) -> None:
    clips = [make_video(tmp_path, name, data) for name, data in (("c", b"1"), ("a", b"1"), ("b", b"2"))]
    assert shares(clips) == {"c": {VISUAL: "a", AUDIO: "a"}}


def test_null_clip_shares_frames_and_has_its_own_sound(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, name, b"p", sound) for name, sound in (("base", b"1"), ("null", b"2"), ("twin", b"1"))]
    assert shares(clips) == {"null": {VISUAL: "base"}, "twin": {VISUAL: "base", AUDIO: "base"}}


def test_clips_of_equal_size_and_other_bytes_share_nothing(tmp_path: Path) -> None:
    assert shares([make_clip(tmp_path, "a", b"p"), make_clip(tmp_path, "b", b"q")]) == {}


def test_silent_clips_do_not_share_the_absence_of_a_file(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, name, b"p", None) for name in ("a", "b")]
    assert shares(clips) == {"b": {VISUAL: "a"}}


def test_files_of_a_size_of_their_own_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(identity, "digests_of", lambda clips, _: read.extend(clip.id for clip in clips) or {})
    clips = [make_video(tmp_path, name, data) for name, data in (("a", b"1"), ("b", b"22"), ("c", b"33"))]
    shares(clips)
    assert read == ["b", "c"]
    read.clear()
    shares(clips, {clip.id: {} for clip in clips})
    assert read == []
    shares(clips, {"elsewhere": {}})  # its size is not known
    assert read == ["a", "b", "c"]


def test_clip_of_the_store_is_the_owner(tmp_path: Path) -> None:
    clips = [make_video(tmp_path, name, b"1") for name in "abc"]
    stored = {"b": input_digests(clips[1], 2)}
    assert shares(clips, stored) == {name: {VISUAL: "b", AUDIO: "b"} for name in "ac"}
    os.remove(tmp_path / "b.mp4")
    assert shares([clips[0]], stored) == {"a": {VISUAL: "b", AUDIO: "b"}}


def test_owner_that_clips_of_the_store_wait_for_stays_the_owner(tmp_path: Path) -> None:
    """The sharers' shard was committed, then the run was killed before the owner's."""
    clips = [make_video(tmp_path, name, b"1") for name in "abc"]
    digests = {clip.id: input_digests(clip, 2) for clip in clips}
    waiting = {"c": {VISUAL: "b", AUDIO: "b"}}
    found = shares(clips, {"c": digests["c"]}, waiting)
    assert found == {"a": {VISUAL: "b", AUDIO: "b"}}
    # Not even where another one is there by now: a chain of two steps would be followed by nobody.
    assert shares(clips, {"a": digests["a"], "c": digests["c"]}, waiting) == {}


@pytest.mark.parametrize("done", [set(), {"a"}, {"b"}, {"c"}, {"a", "c"}, {"b", "c"}])
def test_interrupted_run_shares_as_the_undisturbed_one(tmp_path: Path, done: set[str]) -> None:
    clips = [make_clip(tmp_path, name, b"p", name.encode()) for name in "abc"]
    whole = shares(clips)
    stored = {clip.id: input_digests(clip, 2) for clip in clips if clip.id in done}
    left = shares(clips, stored, {name: whole[name] for name in done if name in whole})
    assert left == {name: owners for name, owners in whole.items() if name not in done}


def test_clip_that_cannot_be_read_shares_nothing(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, name, b"p") for name in "abc"]
    shutil.rmtree(tmp_path / "a" / "frames")
    assert shares(clips) == {"c": {VISUAL: "b", AUDIO: "b"}}
