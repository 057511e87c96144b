"""A store is planned, written and committed shard by shard; whatever happens in between, no half of a shard is seen."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, ShardPlan, StoreWriter, StreamSpec, object_key, text_key
from refavs.store.format.commits import read_records
from refavs.store.verify import verify
from refavs.terminal.command import run_command
from tests.refavs import small_store as small

HERE = Path(__file__).parent


MAP_ARRAYS = small.STREAMS[small.VISUAL].arrays
FRAMES = [small.content_key(small.VISUAL, clip) for clip in small.CLIPS]


def planned(writer: StoreWriter, keys: list[str], table: str = small.VISUAL) -> ShardPlan:
    """The shard of these keys."""
    (plan,) = writer.plan(table, [keys])
    assert plan is not None
    return plan


def test_each_group_of_keys_becomes_a_shard_in_the_smallest_free_place(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan(small.VISUAL, [["d", "b"], ["a"], [], ["e", "c", "e"]])
    assert plans == [
        ShardPlan(table=small.VISUAL, index=0, keys=("d", "b"), rows=(0, 1)),
        ShardPlan(table=small.VISUAL, index=1, keys=("a",), rows=(2,)),
        None,
        ShardPlan(table=small.VISUAL, index=2, keys=("e", "c"), rows=(4, 5)),
    ]
    assert pickle.loads(pickle.dumps(plans)) == plans and len(pickle.dumps(plans[0])) < 400
    for groups in ([["a", "b", "c"]], [["a"], ["b", "a"]]):
        with pytest.raises(ValueError, match="a shard has 2 rows, a key belongs to one group"):
            writer.plan(small.VISUAL, groups)


def test_interrupted_run_gets_the_same_places_for_remaining_keys(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    groups = [["a", "b"], ["c", "d"], ["e"]]
    plans = writer.plan(small.VISUAL, groups)
    assert plans[1] is not None
    with writer.shard(plans[1]) as shard:
        for key in plans[1].keys:
            shard.write(key, small.row_of(key, MAP_ARRAYS))
    assert writer.plan(small.VISUAL, groups) == [plans[0], None, plans[2]]
    assert writer.missing(small.VISUAL, ["e", "c", "a", "e"]) == ["e", "a"]


def test_finished_store_plans_nothing_and_rewrites_nothing(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    again = small.write_store(tmp_path / "s")
    assert again.plan(small.VISUAL, [FRAMES[:2], FRAMES[2:4]]) == [None, None]
    assert again.missing(small.VISUAL, FRAMES) == []
    assert writer.committed(small.VISUAL) == dict(zip(FRAMES, range(5), strict=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before


def test_new_clip_opens_a_new_shard_and_keeps_the_old_rows(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", clips=("a", "c", "d"))
    before = small.files_of(tmp_path / "s")
    old = FeatureStore(tmp_path / "s")
    writer = small.write_store(tmp_path / "s", clips=("a", "b", "c", "d"))
    assert writer.committed(small.VISUAL) == {f"frames of {clip}": row for clip, row in zip("acdb", (0, 1, 2, 4),
                                                                                            strict=True)}  # fmt: skip
    after = small.files_of(tmp_path / "s")
    shards = [name for name in before if name.rpartition("/")[0] in old.specs and "zarr.json" not in name]
    assert len(shards) == 10 and all(after[name] == before[name] for name in shards)
    assert list(old.clips["id"]) == ["a", "c", "d"], "an open store does not change"
    new = FeatureStore(tmp_path / "s")
    assert new.clips["id"].tolist() == ["a", "c", "d", "b"] and new.fingerprint != old.fingerprint
    small.assert_whole(tmp_path / "s")


def test_interrupted_run_ends_in_the_same_store_even_with_failures(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(9)]
    whole = small.open_writer(tmp_path / "whole")
    small.write_rows(whole, small.VISUAL, keys, failing=["k1", "k6"])
    whole.finalise()
    halves = small.open_writer(tmp_path / "halves")
    plans = halves.plan(small.VISUAL, small.groups_of(keys, 2))
    for plan in (plans[3], plans[0]):
        assert plan is not None
        with halves.shard(plan) as shard:
            for key in plan.keys:
                if key in ("k1", "k6"):
                    shard.fail(key, "made to fail")
                else:
                    shard.write(key, small.row_of(key, small.STREAMS[small.VISUAL].arrays), {"noted": key})
    rest = [group for group in small.groups_of(keys, 2) if "k0" not in group and "k6" not in group]
    for plan in halves.plan(small.VISUAL, rest):
        assert plan is not None
        with halves.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, small.row_of(key, small.STREAMS[small.VISUAL].arrays), {"noted": key})
    halves.finalise()
    assert small.files_of(tmp_path / "halves") == small.files_of(tmp_path / "whole")


def test_failed_key_leaves_an_empty_row_and_is_retried_in_its_own_shard(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, small.VISUAL, small.CLIPS, failing=["b", "e"])
    assert writer.committed(small.VISUAL) == {"a": 0, "c": 2, "d": 3}
    assert read_records(writer.folder, writer.schema)[0].failures == {"b": "made to fail"}
    assert writer.failed(small.VISUAL) == {"b": "made to fail"}
    assert not (tmp_path / "s" / small.MAPS / "c.2.0.0.0.0").exists(), "a shard without a success leaves nothing"
    small.write_rows(writer, small.VISUAL, small.CLIPS)
    assert writer.committed(small.VISUAL) == {"a": 0, "c": 2, "d": 3, "e": 4, "b": 6}
    assert not writer.failed(small.VISUAL)
    small.assert_whole(tmp_path / "s")


def test_statistics_are_those_of_all_rows_and_of_valid_places(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    store = FeatureStore(tmp_path / "s")
    arrays = {name: stream.arrays for name, stream in small.STREAMS.items()}
    maps = np.stack([small.row_of(key, arrays[small.VISUAL])["mask_features"] for key in FRAMES]).astype(np.float64)
    mean, std = store.statistics[small.MAPS]
    np.testing.assert_allclose(mean, maps.mean(axis=(0, 1, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(std, maps.std(axis=(0, 1, 3, 4)), rtol=1e-5)
    texts = [small.row_of(text_key(text), arrays[small.TEXT]) for text in small.TEXTS]
    real = np.concatenate([row["features"][row["valid"]] for row in texts])
    mean, std = store.statistics[small.FEATURES]
    assert mean.dtype == std.dtype == np.float32 and 0 < len(real) < 15
    np.testing.assert_allclose(mean, real.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std, real.std(axis=0), rtol=1e-4)


def test_constant_channel_has_deviation_one(tmp_path: Path) -> None:
    spec = ArraySpec(name="x", shape=(3, 2), dtype="float32", axes=("t", "c"), statistics=True)
    stream = StreamSpec(fingerprint={}, arrays=(spec,), rows_per_shard=4)
    writer = small.open_writer(tmp_path / "s", streams={"audio/x": stream})
    (plan,) = writer.plan("audio/x", [["a"]])
    assert plan is not None
    with writer.shard(plan) as shard:
        shard.write("a", {"x": np.array([[7, 1], [7, 2], [7, 3]], np.float32)})
    mean, std = FeatureStore(tmp_path / "s").statistics["clips/audio/x/x"]
    assert mean.tolist() == [7, 2] and std[0] == 1 and std[1] == pytest.approx(np.sqrt(2 / 3))


def test_infinite_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plan = planned(writer, ["a", "b"])
    bad = small.row_of("a", MAP_ARRAYS)
    bad["mask_features"][0, 1, 2, 3] = np.inf
    with writer.shard(plan) as shard:
        with pytest.raises(StoreError, match=f"{small.MAPS} of 'a' holds values that are infinite or not a number"):
            shard.write("a", bad)
        shard.fail("a", "not finite")
        shard.write("b", small.row_of("b", MAP_ARRAYS))
    assert writer.committed(small.VISUAL) == {"b": 1}
    small.assert_whole(tmp_path / "s")


def test_rows_that_do_not_fit_are_our_own_mistake(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plan, row = planned(writer, ["x"], small.TEXT), small.row_of("x", small.STREAMS[small.TEXT].arrays)
    with pytest.raises(ValueError, match="neither written nor failed"), writer.shard(plan):
        pass
    with pytest.raises(ValueError, match="not in the plan"), writer.shard(plan) as shard:
        shard.write("other", row)
    with pytest.raises(ValueError, match=r"is float64 \(5, 6\), the store has float32"), writer.shard(plan) as shard:
        shard.write("x", row | {"features": row["features"].astype(np.float64)})
    with pytest.raises(ValueError, match="has arrays"), writer.shard(plan) as shard:
        shard.write("x", {})
    assert not list((tmp_path / "s").rglob("c.*")) and not writer.committed(small.TEXT)


def test_exception_in_a_shard_leaves_nothing(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plan = planned(writer, ["a", "b"])
    with pytest.raises(RuntimeError, match="encoder"), writer.shard(plan) as shard:
        shard.write("a", small.row_of("a", MAP_ARRAYS))
        raise RuntimeError("encoder")
    assert not list((tmp_path / "s").rglob("c.*")) and not writer.committed(small.VISUAL)


def test_shard_that_another_process_committed_is_left_alone(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan(small.VISUAL, small.groups_of(small.CLIPS, 2))
    assert plans[0] is not None
    small.write_rows(writer, small.VISUAL, small.CLIPS)
    before = small.files_of(tmp_path / "s")
    with StoreWriter.attach(tmp_path / "s").shard(plans[0]) as shard:
        for key in plans[0].keys:
            shard.write(key, small.row_of("something else", MAP_ARRAYS))
    assert shard.record is not None and shard.record.rows == {"a": 0, "b": 1}
    assert small.files_of(tmp_path / "s") == before


def test_writer_whose_files_were_swept_leaves_those_of_the_run_that_swept(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plan = planned(writer, ["a", "b"])
    with pytest.raises(FileNotFoundError), writer.shard(plan) as shard:
        for key in plan.keys:
            shard.write(key, small.row_of(key, MAP_ARRAYS), {"noted": key})
        writer.folder.sweep()
        other = tmp_path / "s" / small.COARSE / "c.0.0.0.0.0"
        other.write_bytes(b"just published, not yet committed")
    assert other.read_bytes() == b"just published, not yet committed"


def test_other_fingerprint_of_a_stream_is_refused_with_both_named(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    before = small.files_of(tmp_path / "s")
    stream = small.STREAMS[small.VISUAL]
    with pytest.raises(StoreError) as raised:
        other = replace(stream, fingerprint=stream.fingerprint | {"weights": "random:0"})
        small.open_writer(tmp_path / "s", streams={small.VISUAL: other})
    text = str(raised.value)
    assert f"weights={'a1' * 32}" in text and "weights=random:0" in text and text.count("swin@") == 3
    assert "remove it with refavs-store drop" in text and "call the new one visual/swin@NAME/pixel_decoder" in text
    wider = replace(stream, arrays=(replace(stream.arrays[0], shape=(3, 4, 5, 7)), stream.arrays[1]))
    with pytest.raises(StoreError, match=r"mask_features float16 \(3, 4, 5, 6\)\), this run makes .*\(3, 4, 5, 7\)"):
        small.open_writer(tmp_path / "s", streams={small.VISUAL: wider})
    assert small.files_of(tmp_path / "s") == before


def test_other_sizes_are_refused_with_both_named(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    for changes, text in (({"mask_size": 13}, "has clips with 11 px masks, this run makes 13 px masks"),
                          ({"seconds": 5}, "with 3 seconds, this run makes 5 seconds"),
                          ({"fps": 2.0}, r"with 1\.0 frames per second, this run makes 2\.0 frames")):  # fmt: skip
        with pytest.raises(StoreError, match=text):
            small.open_writer(tmp_path / "s", streams={}, **changes)


def test_existing_store_keeps_its_own_shard_size_and_source(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    streams = {name: replace(stream, rows_per_shard=9) for name, stream in small.STREAMS.items()}
    writer = small.open_writer(tmp_path / "s", source="moved", streams=streams, objects_per_shard=9)
    assert {table.rows_per_shard for table in writer.schema.tables.values()} == {2, 3, 4}
    assert writer.schema.source == "small"


@pytest.mark.parametrize(
    ("kind", "text"),
    [("file", "is a file; name a"), ("folder", "an empty or a new folder"), ("group", "refavs-extract wrote")],
)
def test_folder_of_something_else_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("x")
    else:
        path.mkdir()
        (path / ("zarr.json" if kind == "group" else "notes.txt")).write_text('{"attributes": {}}')
    with pytest.raises(StoreError, match=text):
        small.open_writer(path)
    assert len(list(tmp_path.rglob("*"))) == (1 if kind == "file" else 2)


@pytest.mark.parametrize(
    "name",
    ["visual", "visual/../x", "/visual/x", "visual/x/", "other/x", "visual//x", "visual/x/y/z", "audio/\0", "audio/x\n",
     "text/key", "visual/zarr.json"],
)
def test_stream_that_could_leave_the_store_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be used; accepted: <modality>/<encoder>"):
        small.open_writer(tmp_path / "s", streams={name: small.LEVEL})
    assert not (tmp_path / "s").exists()


def test_stream_within_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="stream 'visual/x' cannot be used beside 'visual/x/y'"):
        small.open_writer(tmp_path / "s", streams={"visual/x": small.LEVEL, "visual/x/y": small.LEVEL})


def test_array_description_that_cannot_work_is_refused() -> None:
    for changes, text in (
        ({"name": "../x"}, "array name '../x' cannot be used; accepted: letters"),
        ({"name": "row"}, "array name 'row' cannot be used"),
        ({"dtype": "complex64"}, "has type 'complex64'; accepted: bool"),
        ({"shape": (0, 2)}, "accepted: positive sizes"),
        ({"axes": ("t",)}, "one name for each"),
        ({"axes": ("t", "h"), "statistics": True}, "must be called 'c'"),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=text):
            ArraySpec(**{"name": "x", "shape": (2, 2), "dtype": "uint8", "axes": ("t", "c")} | changes)


def test_ids_cannot_leave_the_store(tmp_path: Path) -> None:
    ids = ("../../evil", "/etc/evil", "a\\b", "ü" * 90, "x" * 5000)
    small.write_store(tmp_path / "s", clips=ids)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert sorted(FeatureStore(tmp_path / "s").clips["id"]) == sorted(ids)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize("key", ["a\udcff", "a\0"])
def test_id_that_is_not_unicode_is_refused(tmp_path: Path, key: str) -> None:
    writer = small.open_writer(tmp_path / "s")
    with pytest.raises(StoreError, match=r"keys of objects, row 1: .* (is not valid Unicode; rename|holds a NUL)"):
        writer.plan("objects", [["0", key]])


def test_expressions_of_missing_rows_or_columns_are_refused(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    frame = small.expressions(writer)
    with pytest.raises(StoreError, match=r"the table expressions lacks grade; needed: uid, vid"):
        writer.write_expressions(frame.drop(columns="grade"))
    with pytest.raises(StoreError, match=r"refer to row 77 of clips, which does not exist"):
        writer.write_expressions(frame.assign(clip=77))
    with pytest.raises(StoreError, match=r"column uid, row 0: 'a\\x00' holds a NUL character"):
        writer.write_expressions(frame.assign(uid="a\0"))
    with pytest.raises(StoreError, match=r"column split, row 0: .* is not valid Unicode"):
        writer.write_expressions(frame.assign(split=pd.Series(["\ud800"] * len(frame), dtype=object)))
    assert len(FeatureStore(tmp_path / "s")) == 10


def test_stray_temporary_files_are_swept_on_open(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    stray = tmp_path / "s" / small.MAPS / "c.0.0.0.0.0.77-0badcafe.partial"
    stray.write_bytes(b"half")
    assert verify(tmp_path / "s").uncommitted == (f"{small.MAPS}/{stray.name}",)
    small.open_writer(tmp_path / "s")
    assert not stray.exists()


@pytest.mark.parametrize("room", [0, 300, 700, 1000, 1500, 1800, 2060, 2300])
def test_full_disk_leaves_no_committed_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan(small.VISUAL, small.groups_of(small.CLIPS, 2))
    assert plans[0] is not None
    before = small.files_of(tmp_path / "s")
    real, left = os.write, [room]

    def write(file: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left") as raised, writer.shard(plans[0]) as shard:
        for key in plans[0].keys:
            try:
                shard.write(key, small.row_of(key, MAP_ARRAYS), {"noted": key})
            except OSError:
                shard.fail(key, "taken for the clip's fault")
    assert raised.value.filename and "/s/" in raised.value.filename
    monkeypatch.setattr(os, "write", real)
    assert small.files_of(tmp_path / "s") == before, "the failed shard left something behind"
    small.write_store(tmp_path / "s")
    small.write_store(tmp_path / "undisturbed")
    assert small.files_of(tmp_path / "s") == small.files_of(tmp_path / "undisturbed")


@pytest.mark.process
def test_real_full_disk_is_one_line_and_the_rest_stays_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        keys = [f"k{number:03d}" for number in range(400)]

        def command_() -> int:
            writer = small.open_writer(disk / "s")
            small.write_rows(writer, small.VISUAL, keys)
            return 0

        assert run_command("refavs-extract", command_) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and "No space left on device; free space or name another folder" in text
        done = StoreWriter.attach(disk / "s").committed(small.VISUAL)
        assert 0 < len(done) < 400 and not list((disk / "s").rglob("*.partial"))
        small.assert_whole(disk / "s")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small_store as small
out = Path(sys.argv[2])
os.fsync = lambda file: None

def run(root, die_at=None):
    real, count = os.rename, [0]
    def rename(source, target):
        count[0] += 1
        if count[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
    os.rename = rename
    small.write_store(root)
    os.rename = real
    return count[0]

started = time.monotonic()
renames = run(out / "undisturbed")
taken = time.monotonic() - started
rng = random.Random(0)
points = [("rename", point) for point in range(1, renames + 1, 5)] + [("moment", number) for number in range(6)]
for name, point in points:
    child = os.fork()
    if not child:
        run(out / f"{name}{point}", point if name == "rename" else None)
        os._exit(0)
    if name == "moment":
        time.sleep(rng.uniform(0.1, 1) * taken)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(len(points))
"""


@pytest.mark.slow  # tests/faults/test_kills.py kills at a sample of the points in `make test`
def test_killed_run_finishes_to_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(HERE), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and int(done.stdout) >= 15, done.stderr
    expected = small.files_of(tmp_path / "undisturbed")
    unfinished = 0
    for root in sorted(tmp_path.iterdir()):
        found = small.files_of(root)
        if root.name.startswith("rename"):  # those killed at some moment may have been done by then
            unfinished += 1
            assert found != expected, root.name
        if "zarr.json" in found:
            small.assert_whole(root)
        small.write_store(root)
        assert small.files_of(root) == expected, root.name
    assert unfinished >= 15


def test_objects_need_no_clip_of_their_own(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, "objects", [object_key("gone/with/slashes", 3)])
    writer.finalise()
    assert FeatureStore(tmp_path / "s").objects.loc[0].tolist() == ["gone/with/slashes", 3]


def test_record_of_other_keys_in_the_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    ours, late, other = (planned(writer, keys) for keys in (["a", "b"], ["a", "b"], ["a", "c"]))

    def write(plan: ShardPlan) -> None:
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, small.row_of(key, MAP_ARRAYS))

    write(ours)
    write(late)  # the same keys: what is there is as good
    with pytest.raises(StoreError, match="has other keys than this run planned"):
        write(other)
    assert writer.committed(small.VISUAL) == {"a": 0, "b": 1}


def test_clips_keep_their_places_and_facts_when_others_come(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s", clips=("b", "a"))
    assert writer.write_clips(small.clip_table(("c", "a")).drop(columns="silent").assign(note="x")) == {
        "b": 0, "a": 1, "c": 2}  # fmt: skip
    clips = writer.table("clips")
    assert clips is not None and clips["id"].tolist() == ["b", "a", "c"]
    assert clips["silent"].tolist() == [True, False, False] and clips["note"].tolist() == ["", "x", "x"]
    assert str(clips["silent"].dtype) == "bool" and clips["repeated_from_s"].isna().tolist() == [True, False, False]
    frame = small.clip_table(("d",))
    for bad in (frame.assign(seconds=4), small.clip_table(("d", "d"))):
        with pytest.raises(StoreError, match="or a repeated id, among"):
            writer.write_clips(bad)
    with pytest.raises(StoreError, match="the table clips lacks sound; needed: id, frames, sound, seconds"):
        writer.write_clips(frame.drop(columns="sound"))
    for bad in (frame.assign(visual=1), frame.assign(**{"a b": 1})):
        with pytest.raises(StoreError, match="the table clips cannot be written: a column"):
            writer.write_clips(bad)
