"""A level that comes later, and clips with the same input: what is there is not computed or stored again."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

from refavs.errors import StoreError
from refavs.store import FeatureStore, ShardPlan, StoreWriter
from refavs.store.verify import verify

_spec = importlib.util.spec_from_file_location("small_store", Path(__file__).parent / "small_store.py")
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

BACKBONE = small.ArraySpec(
    path=small.BACKBONE, shape=(3, 2, 4, 4), dtype="float16", axes=("t", "c", "h", "w"), statistics=True
)
BOTH = small.SPECS | {"clips": [BACKBONE, *small.SPECS["clips"]]}
STREAMS = {
    "visual/pixel_decoder": small.ENCODERS["visual"], "audio": small.ENCODERS["audio"], "text": small.ENCODERS["text"],
}  # fmt: skip
WITH_BACKBONE = {"visual/backbone": {"name": "swin", "weights": "d4" * 32}, **STREAMS}
SHARES = {"b": {"clips/visual": "a"}, "d": {"clips/visual": "a", "clips/audio": "a"}}


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here loses power, and fsync is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def write(
    writer: StoreWriter, plans: Sequence[ShardPlan], failing: Sequence[str] = (), told: list[str] | None = None
) -> None:
    """Writes what is planned; `told` gets the path of every array that is computed."""
    for plan in plans:
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key in failing:
                    shard.fail(key, "made to fail")
                    continue
                specs = [spec for spec in writer.schema.tables[plan.table].arrays if spec.path in plan.paths_of(key)]
                if told is not None:
                    told += [spec.path for spec in specs]
                shard.write(key, small.row_of(key, specs), small.facts_of(key))


def open_both(root: Path) -> StoreWriter:
    return small.open_writer(root, specs=BOTH, encoders=WITH_BACKBONE)


def finish(writer: StoreWriter) -> None:
    small.write_rows(writer, "text", [small.text_key(text) for text in small.TEXTS])
    small.write_rows(writer, "objects", [small.object_key(clip, 1) for clip in small.CLIPS])
    writer.write_expressions(small.expressions(writer))
    writer.finalise()


def test_level_that_comes_later_gives_the_same_bytes_as_both_at_once(tmp_path: Path) -> None:
    for name, opened in (("later", lambda root: small.open_writer(root, encoders=STREAMS)), ("once", open_both)):
        writer = opened(tmp_path / name)
        write(writer, writer.plan("clips", small.CLIPS, SHARES), failing=["c"])
        finish(writer)
    assert not small.files_of(tmp_path / "later").keys() >= small.files_of(tmp_path / "once").keys()
    writer = open_both(tmp_path / "later")
    told: list[str] = []
    plans = [plan for plan in writer.plan("clips", small.CLIPS, SHARES) if plan.adds]
    assert [(plan.index, plan.keys, plan.arrays) for plan in plans] == [
        (0, ("a",), (small.BACKBONE,)), (2, ("e",), (small.BACKBONE,)),
    ], "b and d share a's maps, c has none"  # fmt: skip
    write(writer, plans, told=told)
    assert set(told) == {small.BACKBONE}
    finish(writer)
    assert small.files_of(tmp_path / "later") == small.files_of(tmp_path / "once")
    assert not verify(tmp_path / "later").damage
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / "later").read(small.BACKBONE, 1), small.row_of("a", [BACKBONE])[small.BACKBONE]
    )


def test_store_without_the_new_level_stays_readable_while_it_comes(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", small.CLIPS))
    finish(writer)
    writer = open_both(tmp_path / "s")
    plans = writer.plan("clips", small.CLIPS)
    write(writer, plans[:1])
    store = FeatureStore(tmp_path / "s")
    assert not store.finished and len(store) == 10
    assert store.read(small.BACKBONE, 1).shape == (3, 2, 4, 4) and store.read(small.MAPS, 4).shape == (3, 4, 5, 6)
    with pytest.raises(StoreError, match=f"has no {small.BACKBONE} of 'e' yet; run refavs-extract with that level"):
        store.read(small.BACKBONE, 4)
    assert [plan.index for plan in open_both(tmp_path / "s").plan("clips", small.CLIPS)] == [1, 2]


def test_failure_leaves_the_committed_shard_as_it_is(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", small.CLIPS))
    writer = open_both(tmp_path / "s")
    plans = writer.plan("clips", small.CLIPS)
    before = small.files_of(tmp_path / "s")
    write(writer, plans[:1], failing=["b"])
    assert small.files_of(tmp_path / "s") == before
    assert writer.plan("clips", small.CLIPS) == plans


def test_level_is_added_only_to_shards_whose_clips_the_source_has(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", small.CLIPS))
    plans = open_both(tmp_path / "s").plan("clips", ["a", "b", "c"])
    assert [plan.keys for plan in plans] == [("a", "b")]


def test_changed_encoder_of_one_level_is_refused_and_the_store_stays(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", small.CLIPS))
    before = small.files_of(tmp_path / "s")
    other = WITH_BACKBONE | {"visual/pixel_decoder": {"name": "swin", "weights": "random:1", "input_size": 11}}
    with pytest.raises(StoreError, match=r"holds visual/pixel_decoder swin@.*this run makes swin@.*weights=random:1"):
        small.open_writer(tmp_path / "s", specs=BOTH, encoders=other)
    with pytest.raises(StoreError, match="has layout"):
        small.open_writer(tmp_path / "s", specs=BOTH | {"clips": [BACKBONE]}, encoders=WITH_BACKBONE)
    assert small.files_of(tmp_path / "s") == before


def test_shared_clips_are_read_from_the_row_that_has_them(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    told: list[str] = []
    write(writer, writer.plan("clips", small.CLIPS, SHARES), told=told)
    finish(writer)
    assert told.count(small.MAPS) == 3 and told.count(small.AUDIO) == 4
    store = FeatureStore(tmp_path / "s")
    for row, (maps, audio) in enumerate([("a", "a"), ("a", "b"), ("c", "c"), ("a", "a"), ("e", "e")]):
        for path, owner in ((small.MAPS, maps), (small.AUDIO, audio)):
            expected = small.row_of(owner, small.SPECS["clips"])[path]
            np.testing.assert_array_equal(store.read(path, row).numpy(), expected)
    group = zarr.open_group(str(tmp_path / "s"), mode="r")
    np.testing.assert_array_equal(group["clips/visual_row"][...], [0, 0, 2, 0, 4])
    np.testing.assert_array_equal(group["clips/audio_row"][...], [0, 1, 2, 0, 4])
    assert writer.plan("clips", small.CLIPS, SHARES) == [] and not verify(tmp_path / "s").damage


def test_clip_whose_owner_failed_does_not_count_as_committed(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", small.CLIPS, SHARES), failing=["a"])
    assert set(writer.committed("clips")) == {"c", "e"}
    with pytest.raises(StoreError, match="of 'b' is that of 'a', which is not committed"):
        FeatureStore(tmp_path / "s").read(small.MAPS, 1)
    write(writer, writer.plan("clips", small.CLIPS, SHARES))
    assert set(writer.committed("clips")) == set(small.CLIPS)
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / "s").read(small.MAPS, 1), small.row_of("a", small.SPECS["clips"])[small.MAPS]
    )


def test_clips_that_share_in_a_circle_are_refused(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", encoders=STREAMS)
    write(writer, writer.plan("clips", ["a", "b"], {"a": {"clips/visual": "b"}, "b": {"clips/visual": "a"}}))
    with pytest.raises(StoreError, match="of 'a' is that of 'b', which is again another one's"):
        FeatureStore(tmp_path / "s").read(small.MAPS, 0)
