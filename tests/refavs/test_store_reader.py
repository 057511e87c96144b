"""A reader sees committed rows only, finds what is damaged on the first touch, and names it."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refavs.errors import StoreError
from refavs.store import FeatureStore, object_key, text_key
from refavs.store.backends.base import LocalFolder
from refavs.store.columns import table_record
from refavs.store.format.commits import record_name, seal, unseal
from refavs.store.format.shard import crc32c
from tests.refavs import small_store as small

SHARD = f"{small.MAPS}/c.0.0.0.0.0"
RECORD = record_name(small.VISUAL, 0)
EXPRESSIONS_RECORD = table_record("expressions")


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def rewrite(root: Path, name: str, change: Any) -> None:
    """Changes a commit record and seals it again, as only an attacker would."""
    path = root / name
    facts = unseal(LocalFolder(path.parent), path.name)
    change(facts)
    path.write_bytes(seal(facts))


def test_tables_describe_the_committed_rows(built: Path) -> None:
    store = FeatureStore(built)
    assert store.clips["id"].to_dict() == dict(enumerate("abcde")) and store.clips["silent"].tolist() == [0, 1, 0, 0, 0]
    assert store.objects[["clip_id", "fid"]].to_numpy().tolist() == [[clip, 1] for clip in "abcde"]
    assert set(store.texts["text"]) == set(small.TEXTS)
    table = store.expressions
    assert list(table.columns) == [
        "uid", "vid", "clip_id", "clip", "object", "text", "text_row", "split", "fid", "grade", "dimension",
    ]  # fmt: skip
    assert table.index.tolist() == list(range(10)) and table["uid"].tolist()[:3] == ["a_0", "a_1", "b_0"]
    assert table["clip_id"].tolist() == [uid[0] for uid in table["uid"]]
    assert table["text"].tolist()[:2] == [small.TEXTS[0], small.TEXTS[1]]
    assert [store.texts["text"][row] for row in table["text_row"]] == table["text"].tolist()
    assert (store.seconds, store.mask_size) == (3, 11) and store.finished and store.streams == sorted(small.STREAMS)
    assert store.encoders == {name: stream.fingerprint for name, stream in small.STREAMS.items()}
    assert set(store.specs) == {small.MAPS, small.COARSE, small.AUDIO, small.FEATURES, small.VALID, "objects/mask",
                                "objects/labelled"}  # fmt: skip


def test_sample_holds_what_was_written(built: Path) -> None:
    store = FeatureStore(built)
    assert len(store) == 10 and [sample.uid for sample in store] == store.expressions["uid"].tolist()
    sample = store[3]
    tables = store.schema.tables
    maps, sound = (small.row_of(small.content_key(name, "b"), tables[name].arrays)
                   for name in (small.VISUAL, small.SOUND))  # fmt: skip
    text = small.row_of(text_key(sample.text_string), tables[small.TEXT].arrays)
    assert (sample.uid, sample.clip_id, sample.split, sample.dimension) == ("b_1", "b", "val", "acoustic")
    assert sample.text_string == small.TEXTS[2] and set(sample.visual) == {"mask_features", "s8"}
    np.testing.assert_array_equal(sample.visual["mask_features"].numpy(), maps["mask_features"])
    np.testing.assert_array_equal(sample.audio.numpy(), sound["features"])
    np.testing.assert_array_equal(sample.text.numpy(), text["features"])
    np.testing.assert_array_equal(sample.valid.numpy(), text["valid"])
    packed = small.row_of(object_key("b", 1), tables["objects"].arrays)
    assert sample.mask is not None and sample.labelled is not None
    np.testing.assert_array_equal(sample.mask.numpy(), np.unpackbits(packed["mask"], axis=-1)[..., :11])
    np.testing.assert_array_equal(sample.labelled.numpy(), packed["labelled"])


def test_expression_without_object_has_no_mask(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    writer.write_expressions(small.expressions(writer).assign(object=-1, split="predict"))
    sample = FeatureStore(tmp_path / "s")[0]
    assert sample.mask is None and sample.labelled is None and sample.split == "predict"


def test_levels_choose_the_maps(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", streams=small.STREAMS | {small.BACKBONE_STREAM: small.LEVEL})
    store = FeatureStore(tmp_path / "s")
    assert set(store[0].visual) == {"mask_features", "s8", "res2"}
    assert set(store.sample(0, ["backbone"]).visual) == {"res2"}
    assert set(store.sample(0, ["backbone", "pixel_decoder/s8"]).visual) == {"res2", "s8"}
    with pytest.raises(StoreError, match="has no level 'backbon'; did you mean 'backbone'"):
        store.sample(0, ["backbon"])


@pytest.mark.parametrize(("weights", "expected"), [("random:0", True), ("0f" * 32, False)])
def test_random_weights_are_reported(tmp_path: Path, weights: str, expected: bool) -> None:
    sound = replace(small.STREAMS[small.SOUND], fingerprint={"name": "vggish", "parts": [{"weights": weights}]})
    small.open_writer(tmp_path / "s", streams=small.STREAMS | {small.SOUND: sound})
    assert FeatureStore(tmp_path / "s").random_weights is expected


@pytest.mark.long
def test_fingerprint_follows_content_and_nothing_else(built: Path, tmp_path: Path) -> None:
    fingerprint = FeatureStore(built).fingerprint
    small.write_store(tmp_path / "again", source="somewhere else")
    assert FeatureStore(tmp_path / "again").fingerprint == fingerprint
    others = {
        "clips": {"clips": small.CLIPS[:4]},
        "streams": {"streams": small.STREAMS | {small.BACKBONE_STREAM: small.LEVEL}},
        "fps": {"fps": 2.0},
    }
    for name, changes in others.items():
        small.write_store(tmp_path / name, **changes)
    writer = small.write_store(tmp_path / "split")
    writer.write_expressions(small.expressions(writer).assign(split="train"))
    found = {FeatureStore(tmp_path / name).fingerprint for name in (*others, "split")}
    assert len(found | {fingerprint}) == 5


def test_store_that_does_not_say_its_frame_rate_has_one_frame_per_second(root: Path) -> None:
    fingerprint, facts = FeatureStore(root).fingerprint, json.loads((root / "zarr.json").read_text())
    del facts["attributes"]["fps"]
    (root / "zarr.json").write_text(json.dumps(facts))
    store = FeatureStore(root)
    assert (store.steps.fps, len(store.steps), store.fingerprint) == (1.0, 3, fingerprint)


def test_uncommitted_shard_is_invisible(root: Path) -> None:
    writer = small.open_writer(root)
    key = small.content_key(small.VISUAL, "f")
    (plan,) = writer.plan(small.VISUAL, [[key]])
    assert plan is not None
    shard = writer.shard(plan).__enter__()
    shard.write(key, small.row_of(key, writer.schema.tables[small.VISUAL].arrays))
    for file in shard._files.values():
        file.finish()
        file.publish()
    assert (root / small.MAPS / "c.3.0.0.0.0").exists()
    store = FeatureStore(root)
    assert store.clips["id"].tolist() == list("abcde") and len(store) == 10
    with pytest.raises(StoreError, match=rf"row 6 of {small.VISUAL} is not committed in .*; run the same refavs-"):
        store.read(small.MAPS, 6)


def test_store_without_expressions_shows_its_rows_and_says_what_is_missing(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.add_clips(writer, small.CLIPS[:3])
    store = FeatureStore(tmp_path / "s")
    assert store.clips["id"].tolist() == ["a", "b", "c"] and not store.finished
    with pytest.raises(StoreError, match=r"has no table of expressions yet: .* run the same refavs-extract"):
        len(store)


def test_half_written_expressions_are_refused(root: Path) -> None:
    (root / "commits/expressions.json").unlink()
    with pytest.raises(StoreError, match=r"table expressions of .* is half-written .*; run the same refavs-"):
        FeatureStore(root)
    small.write_store(root)
    assert len(FeatureStore(root)) == 10


def test_expressions_whose_objects_lost_their_record_are_refused(root: Path) -> None:
    file = record_name("objects", 1)
    (root / file).unlink()
    with pytest.raises(StoreError, match=r"need row 3 of objects, which is missing \(2 such rows\); run"):
        FeatureStore(root)
    before = small.files_of(root)
    small.write_store(root)
    assert set(small.files_of(root)) - set(before) == {file} and len(FeatureStore(root)) == 10


def test_clip_without_a_row_in_a_stream_is_named_when_it_is_read(root: Path) -> None:
    (root / record_name(small.VISUAL, 1)).unlink()
    store = FeatureStore(root)
    assert not store.finished and store[0].clip_id == "a"
    with pytest.raises(StoreError, match=rf"has no {small.MAPS} of 'c'; run refavs-extract with the stream"):
        store[4]


@pytest.mark.parametrize("byte", [0, 7, 300, 719, 720, 723])
def test_flipped_bit_is_found_on_first_touch_and_the_clip_named(root: Path, byte: int) -> None:
    flip(root / SHARD, byte, byte % 8)
    store = FeatureStore(root)
    text = rf"{small.MAPS} of 'frames of a' \(row 0 of {small.VISUAL}\) .* its checksum is .* remove .*{RECORD} and run"
    with pytest.raises(StoreError, match=text):
        store[0]
    assert store[2].clip_id == "b", "the other row of the shard is whole"
    for _ in range(2):
        with pytest.raises(StoreError, match="'frames of a'"):
            store.read(small.MAPS, 0)


@pytest.mark.parametrize("table", ["objects", "text"])
def test_flipped_bit_in_another_table_names_its_key(root: Path, table: str) -> None:
    path = {"objects": "objects/mask/c.0.0.0.0", "text": "text/roberta/valid/c.0.0"}[table]
    flip(root / path, 0)
    store = FeatureStore(root)
    key = {"objects": "a/1", "text": min(store.texts["key"])}[table]
    with pytest.raises(StoreError, match=f"of '{key}'"):
        list(store)


def test_flipped_bit_in_an_index_is_found(root: Path) -> None:
    for byte in (-1, -5, -30):
        path = Path(shutil.copytree(root, root.parent / f"copy{byte}"))
        flip(path / SHARD, byte)
        with pytest.raises(StoreError, match=r"of 'frames of b' .* the index of shard .* is damaged: its checksum"):
            FeatureStore(path).read(small.MAPS, 1)


@pytest.mark.long
def test_every_flipped_bit_of_a_record_is_found(root: Path) -> None:
    path = root / RECORD
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    schema = FeatureStore(root).schema
    for byte in [0, len(whole) - 1, *rng.integers(0, len(whole), 30)]:
        flip(path, int(byte), int(byte) % 8)
        with pytest.raises(StoreError, match=r"commit record .*pixel_decoder/00000.json .*; remove it and run the"):
            FeatureStore(root)
        path.write_bytes(whole)
    assert FeatureStore(root).schema == schema


def test_verify_policy_decides_when_checksums_are_compared(root: Path) -> None:
    first, always, never = (FeatureStore(root, verify=policy) for policy in ("first", "always", "never"))
    for store in (first, always, never):
        store.read(small.MAPS, 0)
    flip(root / SHARD, 3)
    assert torch.equal(first.read(small.MAPS, 0), never.read(small.MAPS, 0))
    with pytest.raises(StoreError, match="of 'frames of a'"):
        always.read(small.MAPS, 0)
    with pytest.raises(StoreError, match="verify is 'sometimes'; accepted: first, always, never"):
        FeatureStore(root, verify="sometimes")


def test_missing_truncated_or_swapped_shard_is_found(root: Path) -> None:
    first, second = root / SHARD, root / small.MAPS / "c.1.0.0.0.0"
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match=r"of 'frames of a' .*and the commit record"):
        FeatureStore(root).read(small.MAPS, 0)
    first.write_bytes(swapped[:-1])
    with pytest.raises(StoreError, match=r"of 'frames of a' .* bytes, its commit record says"):
        FeatureStore(root).read(small.MAPS, 0)
    first.unlink()
    with pytest.raises(StoreError, match=r"of 'frames of a' .* cannot be read \(No such file or directory\)"):
        FeatureStore(root).read(small.MAPS, 0)
    (root / RECORD).unlink()
    small.write_store(root)
    assert first.read_bytes() == swapped, "the remedy in the message mends it"


def test_unknown_array_is_refused_with_the_nearest(built: Path) -> None:
    with pytest.raises(StoreError, match=f"has no array 'clips/audio/vgish/features'; did you mean '{small.AUDIO}'"):
        FeatureStore(built).read("clips/audio/vgish/features", 0)


def test_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match=r"no feature store at .* \(it has no zarr.json\); name a folder"):
            FeatureStore(path)


def test_other_schema_version_is_refused(root: Path) -> None:
    path = root / "zarr.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 7'))
    with pytest.raises(StoreError, match="has schema version 7, this refavs reads 3; extract into a new store"):
        FeatureStore(root)


@pytest.mark.parametrize(("old", "new"), [("s8", "../../passwd"), ("s8", ".."), ("audio/vggish", "audio/../..")])
def test_schema_cannot_point_out_of_the_store(root: Path, old: str, new: str) -> None:
    text = (root / "zarr.json").read_text()
    (root / "zarr.json").write_text(text.replace(f'"{old}"', f'"{new}"'))
    with pytest.raises(StoreError, match=r"has a damaged zarr.json: (array name|stream) .* cannot be used"):
        FeatureStore(root)


def test_commit_record_cannot_point_out_of_the_store(root: Path) -> None:
    def other_array(facts: dict) -> None:
        facts["arrays"]["../../etc/passwd"] = facts["arrays"].pop("s8")

    changes = {
        "arrays ": other_array,
        "rows": lambda facts: facts["rows"].update(a=99),
        ", the stream has": lambda facts: facts.update(fingerprint="0" * 16),
        "belongs to shard": lambda facts: facts.update(index=5),
        r"of \.\./x": lambda facts: facts.update(table="../x"),
        "crc32c is 'many'; accepted: a whole number": lambda facts: facts["arrays"]["s8"].update(crc32c="many"),
        "failures.q is '3'; accepted: a text": lambda facts: facts["failures"].update(q=3),
        "meta.a is a list; accepted: an object": lambda facts: facts["meta"].update(a=[]),
        "has no 'meta'": lambda facts: facts.pop("meta"),
        "rows.a is '400000000'; accepted: a whole number from 0 to 4194303":
            lambda facts: facts["rows"].update(a=400_000_000),
        "statistics of 1 channels.*; accepted: 4":
            lambda facts: facts["statistics"]["s8"].update(dict.fromkeys(("sum", "sumsq"), "AAAAAAAAAAA=")),
    }
    whole = (root / RECORD).read_bytes()
    for text, change in changes.items():
        rewrite(root, RECORD, change)
        with pytest.raises(StoreError, match=rf"commit record .*{RECORD} cannot be used: .*({text})"):
            FeatureStore(root)
        (root / RECORD).write_bytes(whole)


def test_expressions_record_cannot_point_out_of_the_store(root: Path) -> None:
    whole = (root / EXPRESSIONS_RECORD).read_bytes()
    for change in (
        lambda columns: columns.pop(2), lambda columns: columns[2].update(kind="str"),
        lambda columns: columns[2].update(shape=[10**15]),
    ):  # fmt: skip
        rewrite(root, EXPRESSIONS_RECORD, lambda facts, change=change: change(facts["columns"]))
        with pytest.raises(StoreError, match=r"the table expressions of .* cannot be used"):
            FeatureStore(root)
        (root / EXPRESSIONS_RECORD).write_bytes(whole)
    rewrite(root, EXPRESSIONS_RECORD, lambda facts: facts["columns"].append(
        {**facts["columns"][0], "name": "../../secret"}))  # fmt: skip
    with pytest.raises(StoreError, match=r"cannot be used \(a column '../../secret'"):
        FeatureStore(root)


def test_doubled_clip_is_refused(root: Path) -> None:
    rewrite(root, record_name(small.VISUAL, 1), lambda facts: facts.update(
        rows={"frames of a": 2, "d": 3}, meta={"frames of a": {}, "d": {}}))  # fmt: skip
    with pytest.raises(StoreError, match=r"00001.json holds 'frames of a', which shard 0 already holds"):
        FeatureStore(root)


def test_damaged_expressions_are_refused(root: Path) -> None:
    flip(root / "expressions/uid/c.0.0", 1)
    with pytest.raises(StoreError, match=r"column .*uid/c.0.0 is damaged: .*; remove .*expressions.json, then"):
        FeatureStore(root)


def test_store_survives_pickling_and_moving(root: Path) -> None:
    store = pickle.loads(pickle.dumps(FeatureStore(root, {"audio": "vggish"}, "always")))
    assert (store.verify, store.use) == ("always", {"audio": "vggish"})
    assert torch.equal(store[1].audio, FeatureStore(root)[1].audio)
    moved = root.rename(root.parent / "moved")
    assert FeatureStore(moved).fingerprint == store.fingerprint


def test_attributes_are_those_of_the_group(built: Path) -> None:
    store = FeatureStore(built)
    assert store.attributes == json.loads((built / "zarr.json").read_text())["attributes"]
    assert store.attributes["fingerprint"] == store.fingerprint and store.attributes["seconds"] == 3


def test_seal_is_plain_json_and_its_checksum_is_of_the_bytes(tmp_path: Path) -> None:
    facts = {"rows": {"é": 1, "a": 0}, "mean": [0.1, 1e-7]}
    data = seal(facts)
    assert json.loads(data) == {"crc32c": f"{crc32c(data[30:-1]):08x}", "record": facts}
    path = tmp_path / "record.json"
    for changed in (data, data[:-1], data + b"\n", b"", b"{}", b"[]", data.replace(b"0.1", b"0.2"), data[::-1]):
        path.write_bytes(changed)
        if changed == data:
            assert unseal(LocalFolder(path.parent), path.name) == facts
        else:
            with pytest.raises(StoreError, match="does not match its own checksum"):
                unseal(LocalFolder(path.parent), path.name)


def test_no_more_shards_are_open_than_a_process_may_map(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refavs.store.reader.MOST_OPEN", 2)
    store, whole = FeatureStore(built), FeatureStore(built)
    for _ in range(2):
        kept = [(path, row, store.read(path, row)) for path in (small.MAPS, small.AUDIO) for row in (0, 2, 4)]
        assert len(store._shards) == 2
        assert all(torch.equal(found, whole.read(path, row)) for path, row, found in kept)
