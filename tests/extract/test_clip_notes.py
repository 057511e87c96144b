"""Peculiarities of clips: stored with the clip, and counted by kind at the end of a run and by refavs-store."""

from pathlib import Path

import pytest

from extract.cli import main
from extract.media.notes import NOTES, counted, oddities
from extract.store_cli import main as store_main
from refavs.store.reader import FeatureStore
from tests.extract import film_variants
from tests.extract.command import in_this_process, run_with, tiny

pytestmark = pytest.mark.usefixtures("small_networks")

FILMS = {
    "plain": "libx264 flac 16000.mp4", "late": "picture 2 s late.mkv", "joined": "two parts joined.mkv",
    "short": "second sound longer.mkv", "mute": "no sound, late.mkv",
}  # fmt: skip


@pytest.mark.long
def test_odd_clips_are_noted_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, film in FILMS.items():
        film_variants.VARIANTS[film].build(videos / f"{name}{film_variants.VARIANTS[film].suffix}")
    assert main([str(part) for part in tiny(videos, tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    for name in ("picture_late", "time_joined", "sound_short", "repeated_from_s", "silent"):
        (row,) = [line for line in out.splitlines() if f"noted {name} " in line]
        assert row.count(" 1 ") == 1, row
    clips = FeatureStore(tmp_path / "store").clips.set_index("id")
    assert clips.loc["late", "notes"] == "picture_late" and clips.loc["plain", "notes"] == ""
    assert sorted(clips["seconds"]) == [6, 10, 10, 10, 10] and clips["silent"].sum() == 1
    assert store_main(["info", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert f"clips        1 picture_late: {NOTES['picture_late']}" in out and "clips        1 silent" in out


def test_oddities_of_any_store_are_understood() -> None:
    assert oddities({}) == oddities({"silent": False, "repeated_from_s": float("nan")}) == oddities({"notes": 7}) == []
    assert oddities({"silent": True, "notes": "time_joined,made_up,picture_late"}) == [
        "silent", "picture_late", "time_joined",
    ]  # fmt: skip
    assert counted([{"silent": True}, {"silent": True, "repeated_from_s": 6}]) == {"silent": 2, "repeated_from_s": 1}
