"""What is odd about a clip: kept in the store with it, counted by kind as a run ends and by refavs-store."""

import importlib.util
from pathlib import Path

import pytest

from extract.encoders.presets import build_encoders, preset_named
from extract.encoders.weights import WeightSource
from extract.media.notes import NOTES, counted, oddities
from extract.pipeline.extraction import Totals, _summary
from extract.pipeline.plan import array_specs, expressions_table, plan_jobs, wanted_items
from extract.pipeline.worker import Worker
from extract.store_cli import main as store_main
from refavs.data.layouts import read_source
from refavs.store.format.schema import TABLES
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter

_spec = importlib.util.spec_from_file_location("film_variants", Path(__file__).parent / "film_variants.py")
assert _spec is not None and _spec.loader is not None
film_variants = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(film_variants)

FILMS = {
    "plain": "libx264 flac 16000.mp4", "late": "picture 2 s late.mkv", "joined": "two parts joined.mkv",
    "short": "second sound longer.mkv", "mute": "no sound, late.mkv",
}  # fmt: skip


@pytest.mark.long
def test_odd_clips_are_noted_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, film in FILMS.items():
        film_variants.VARIANTS[film].build(videos / f"{name}{film_variants.VARIANTS[film].suffix}")
    source, preset = read_source(videos), preset_named("tiny")
    encoders = build_encoders(preset, WeightSource(kind="random"), ("pixel_decoder",), "fp32")
    writer = StoreWriter.open(
        tmp_path / "store", encoders=encoders.fingerprints(), source=str(videos), num_frames=10, input_size=96,
        specs=array_specs(preset, encoders), rows_per_shard=preset.rows_per_shard,
    )  # fmt: skip
    worker, totals = Worker(str(tmp_path / "store"), preset, encoders, 1), Totals()
    jobs = plan_jobs(writer, wanted_items(source))
    for job in jobs:
        totals.add(worker.run(job))
    assert totals.odd == {"picture_late": 1, "time_joined": 1, "sound_short": 1, "repeated_from_s": 1, "silent": 1}
    capsys.readouterr()
    _summary(source, writer, totals, jobs, 1.0)
    out = capsys.readouterr().out
    for name in totals.odd:
        (row,) = [line for line in out.splitlines() if f"noted {name} " in line]
        assert row.count(" 1 ") == 2, row  # now, and in the store
    writer.write_expressions(expressions_table(source, {table: writer.committed(table) for table in TABLES}))
    writer.finalise()
    clips = FeatureStore(tmp_path / "store").clips.set_index("id")
    assert clips.loc["late", "notes"] == "picture_late" and clips.loc["plain", "notes"] != clips.loc["plain", "notes"]
    assert store_main(["info", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert f"clips        1 picture_late: {NOTES['picture_late']}" in out and "clips        1 silent" in out


def test_oddities_of_any_store_are_understood() -> None:
    assert oddities({}) == oddities({"silent": False, "repeated_from_s": None}) == oddities({"notes": 7}) == []
    assert oddities({"silent": True, "notes": "time_joined,made_up,picture_late"}) == [
        "silent", "picture_late", "time_joined",
    ]  # fmt: skip
    assert counted([{"silent": True}, {"silent": True, "repeated_from_s": 6}]) == {"silent": 2, "repeated_from_s": 1}
