"""Streams stand on their own: each is added, chosen and dropped without touching a file of another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refavs.data.batches import batches
from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.fingerprints import fingerprint_of
from refavs.store.verify import verify
from tests.refavs import small_store as small

CLAP = replace(
    small.STREAMS[small.SOUND], fingerprint={"name": "clap", "weights": "d4" * 32},
    arrays=(small.ArraySpec(name="features", shape=(6, 4), dtype="float32", axes=("n", "c"), statistics=True),),
)  # fmt: skip
WIDER = small.STREAMS | {"audio/clap": CLAP, small.BACKBONE_STREAM: small.LEVEL}


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file."""
    return {path.relative_to(root).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in root.rglob("*") if path.is_file()}  # fmt: skip


@pytest.mark.long
def test_stream_that_comes_later_leaves_every_other_file_alone(built: Path, root: Path, tmp_path: Path) -> None:
    before = stamps(root)
    small.write_store(root, streams=WIDER)
    after = stamps(root)
    assert {name for name in before if after[name] != before[name]} == {"zarr.json", "commits/listing.json"}
    new = after.keys() - before.keys()
    starts = ("clips/audio/clap", "clips/visual/swin/backbone", "commits/audio/clap", "commits/visual/swin/backbone")
    assert all(name.startswith(starts) for name in new)
    small.write_store(tmp_path / "once", streams=WIDER)
    assert small.files_of(root) == small.files_of(tmp_path / "once"), "as both at once"
    small.assert_whole(root)
    store = FeatureStore(root, {"audio": "clap"})
    assert store[0].audio.shape == (6, 4)
    (batch,) = batches(store, [0, 2], 2)
    assert batch.audio.shape == (2, 6, 4)


def test_dropped_stream_gives_its_space_back_and_leaves_every_other_file_alone(built: Path, root: Path) -> None:
    small.write_store(root, streams=WIDER)
    before = stamps(root)
    writer = small.open_writer(root, streams={})
    assert writer.drop("audio/clap") == ["audio/clap"] and writer.drop(small.BACKBONE_STREAM) == [small.BACKBONE_STREAM]
    writer.finalise()
    assert small.files_of(root) == small.files_of(built)
    changed = {name for name, stamp in stamps(root).items() if before[name] != stamp}
    assert changed == {"zarr.json", "commits/listing.json"}
    assert not (root / "clips/audio/clap").exists() and not verify(root).damage
    with pytest.raises(StoreError, match="has no stream 'audio/clap'; known: audio/vggish, "):
        writer.drop("audio/clap")
    for odd in ("", "clips", "../s", "visual"):
        with pytest.raises(StoreError, match="has no stream"):
            writer.drop(odd)
    assert small.files_of(root) == small.files_of(built)


def test_encoder_is_dropped_with_all_its_levels(root: Path) -> None:
    small.write_store(root, streams=WIDER)
    writer = small.open_writer(root, streams={})
    assert sorted(writer.drop("visual/swin")) == [small.BACKBONE_STREAM, small.VISUAL]
    writer.finalise()
    assert not (root / "clips/visual").exists() and not verify(root).damage
    store = FeatureStore(root)
    assert store.streams == ["audio/clap", small.SOUND, small.TEXT] and len(store) == 10
    with pytest.raises(StoreError, match=r"has no visual encoder; name one .*or add another with refavs-extract"):
        store.visual_paths()


@pytest.mark.parametrize("place", range(0, 30, 6))
def test_interrupted_drop_is_completed_or_undone(
    built: Path, root: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_store(root, streams=WIDER)
    wide = small.files_of(root)
    count = 0
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += 1
        if count > place:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    writer = small.open_writer(root, streams={})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        try:
            writer.drop("visual/swin/backbone")
            writer.drop("audio/clap")
        except KeyboardInterrupt:
            pass
    store = FeatureStore(root)
    assert small.BACKBONE_STREAM not in store.streams and len(store) == 10 and verify(root).damage == ()
    if place % 2:
        small.write_store(root, streams=WIDER)
        assert small.files_of(root) == wide, "nothing of the old stream was taken for the new one"
    else:
        writer = small.open_writer(root, streams={})
        for stream in (small.BACKBONE_STREAM, "audio/clap"):
            if stream in writer.schema.streams or any(LocalFolder(root).names(f"commits/{stream}")):
                writer.drop(stream)
        writer.finalise()
        assert {name for name in small.files_of(root) if "c." in name} == {
            name for name in small.files_of(built) if "c." in name} or place > 2  # fmt: skip


def test_encoder_is_chosen_by_name(root: Path) -> None:
    small.write_store(root, streams=WIDER)
    assert FeatureStore(root).audio_path == small.AUDIO, "the paper's among several"
    clap = FeatureStore(root, {"audio": "clap"})
    assert clap.audio_path == "clips/audio/clap/features" and clap.in_use["audio"] == ["audio/clap"]
    assert clap.encoders["audio/clap"] == CLAP.fingerprint and small.SOUND not in clap.encoders
    assert set(FeatureStore(root, {"visual": "swin/backbone"}).visual_paths()) == {"res2"}
    with pytest.raises(StoreError, match=r"has the audio encoders clap, vggish, not 'beats'; name one that it has"):
        FeatureStore(root, {"audio": "beats"})
    writer = small.open_writer(root, streams={"audio/beats": CLAP})
    writer.drop(small.SOUND)
    with pytest.raises(StoreError, match=r"has the audio encoders beats, clap; name one that it has"):
        _ = FeatureStore(root).audio_path


def test_maps_with_one_name_in_two_levels_are_distinguished(tmp_path: Path) -> None:
    twice = replace(small.LEVEL, arrays=(replace(small.LEVEL.arrays[0], name="s8"),))
    small.write_store(tmp_path / "s", streams=small.STREAMS | {small.BACKBONE_STREAM: twice})
    store = FeatureStore(tmp_path / "s")
    assert set(store.visual_paths()) == {"mask_features", "backbone/s8", "pixel_decoder/s8"}
    assert store.visual_paths(["backbone"]) == {"s8": "clips/visual/swin/backbone/s8"}
    assert store[0].visual["backbone/s8"].shape == (3, 2, 5, 6)


def test_clips_of_the_same_content_share_a_row(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_content(writer)
    table = small.clip_table(small.CLIPS)
    table["frames"] = [table["frames"][0], table["frames"][0], *table["frames"][2:]]
    writer.write_clips(table)
    writer.write_expressions(small.expressions(writer))
    writer.finalise()
    store = FeatureStore(tmp_path / "s")
    assert store.rows_of(small.VISUAL).tolist() == [0, 0, 2, 3, 4]
    assert store.rows_of(small.SOUND).tolist() == [*range(5)]
    one, two = store[0], store[2]
    assert (one.clip_id, two.clip_id) == ("a", "b")
    np.testing.assert_array_equal(one.visual["s8"], two.visual["s8"])
    assert not np.array_equal(one.audio, two.audio) and not verify(tmp_path / "s").damage
    data = bytearray((tmp_path / "s" / small.MAPS / "c.0.0.0.0.0").read_bytes())
    data[5] ^= 1
    (tmp_path / "s" / small.MAPS / "c.0.0.0.0.0").write_bytes(data)
    (damage,) = verify(tmp_path / "s").damage
    assert damage.keys == ("a", "b"), "both lose it"


def test_fingerprint_of_what_is_read_leaves_the_rest_out(built: Path, root: Path) -> None:
    read = [small.MAPS, small.FEATURES, small.VALID]
    before = fingerprint_of(FeatureStore(built), read)
    small.write_store(root, clips=(*small.CLIPS, "f"), streams=WIDER)
    writer = small.open_writer(root)
    writer.write_expressions(small.expressions(writer, small.CLIPS))
    writer.finalise()
    more = FeatureStore(root)
    assert more.fingerprint != FeatureStore(built).fingerprint
    assert fingerprint_of(more, [small.FEATURES, small.VALID]) == fingerprint_of(FeatureStore(built), [
        small.VALID, small.FEATURES])  # fmt: skip
    assert fingerprint_of(more, read) != before, "the statistics are those of six clips"
    small.open_writer(root).write_expressions(small.expressions(writer, small.CLIPS).assign(split="train"))
    assert fingerprint_of(FeatureStore(root), []) != fingerprint_of(FeatureStore(built), [])


@pytest.mark.long
def test_fingerprint_of_what_is_read_follows_rows_masks_and_encoder(built: Path, tmp_path: Path) -> None:
    read = [small.AUDIO]
    before = fingerprint_of(FeatureStore(built), read)
    right = small.row_of
    for name, changed in (("sound of a", True), ("frames of a", False), ("a/1", True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small, "row_of", lambda key, specs, name=name: right(key + " other" * (key == name), specs))
            small.write_store(tmp_path / name.replace("/", " "))
        found = fingerprint_of(FeatureStore(tmp_path / name.replace("/", " ")), read)
        assert (found != before) is changed, name
    sound = replace(small.STREAMS[small.SOUND], fingerprint={"name": "vggish", "weights": "other"}, rows_per_shard=3)
    small.write_store(tmp_path / "weights", streams=small.STREAMS | {small.SOUND: sound})
    assert fingerprint_of(FeatureStore(tmp_path / "weights"), read) != before
    same = replace(small.STREAMS[small.SOUND], rows_per_shard=3)
    small.write_store(tmp_path / "shards", streams=small.STREAMS | {small.SOUND: same})
    assert fingerprint_of(FeatureStore(tmp_path / "shards"), read) == before, "how rows lie in shards changes nothing"


def test_store_without_texts_or_objects_is_written(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", streams={small.VISUAL: small.STREAMS[small.VISUAL]})
    small.add_clips(writer, small.CLIPS)
    writer.write_texts(pd.DataFrame({"key": [], "text": []}, dtype=str))
    writer.finalise()
    store = FeatureStore(tmp_path / "s")
    assert store.finished and len(store.clips) == 5 and len(store.texts) == 0 and not verify(tmp_path / "s").damage
