"""A store is planned, written and committed shard by shard; whatever happens in between, no half of a shard is seen."""

import errno
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, ShardPlan, StoreWriter, object_key, text_key
from refavs.store.format.commits import read_records
from refavs.store.verify import verify
from refavs.terminal.command import run_command

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("small_store", HERE / "small_store.py")
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a killed process nor a full disk loses what fsync guards, and it is slow."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def assert_whole(root: Path) -> None:
    """Every committed row is what it should be, and nothing is damaged."""
    store = FeatureStore(root)
    for (table, row), (_, key) in store._places.items():
        for path, expected in small.row_of(key, store.schema.tables[table].arrays).items():
            np.testing.assert_array_equal(store.read(path, row).numpy(), expected)
    assert not verify(root).damage


def test_plan_cuts_sorted_missing_keys_into_shards(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan("clips", ["d", "b", "a", "e", "c", "a"])
    arrays = (small.MAPS, small.COARSE, small.AUDIO)
    assert plans == [
        ShardPlan(table="clips", index=0, keys=("a", "b"), rows=(0, 1), arrays=arrays),
        ShardPlan(table="clips", index=1, keys=("c", "d"), rows=(2, 3), arrays=arrays),
        ShardPlan(table="clips", index=2, keys=("e",), rows=(4,), arrays=arrays),
    ]
    assert pickle.loads(pickle.dumps(plans)) == plans and len(pickle.dumps(plans[0])) < 400


def test_finished_store_plans_nothing_and_rewrites_nothing(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    again = small.write_store(tmp_path / "s")
    assert again.plan("clips", small.CLIPS) == []
    assert writer.committed("clips") == dict(zip("abcde", range(5), strict=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before


def test_new_clip_opens_a_new_shard_and_keeps_the_old_rows(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", clips=("a", "c", "d"))
    before = small.files_of(tmp_path / "s")
    old = FeatureStore(tmp_path / "s")
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan("clips", ["a", "b", "c", "d"])
    assert (plan.index, plan.keys, plan.rows) == (2, ("b",), (4,))
    small.write_store(tmp_path / "s", clips=("a", "b", "c", "d"))
    after = small.files_of(tmp_path / "s")
    shards = [name for name in before if name.split("/")[-1].startswith("c.") and name.split("/")[-2] not in after
              and "expressions" not in name
              and name.split("/")[1] not in ("id", "visual_row", "audio_row", "clip", "fid")]  # fmt: skip
    assert shards and all(after[name] == before[name] for name in shards)
    assert list(old.clips["id"]) == ["a", "c", "d"], "an open store does not change"
    new = FeatureStore(tmp_path / "s")
    assert new.clips["id"].to_dict() == {0: "a", 1: "c", 2: "d", 4: "b"} and new.fingerprint != old.fingerprint
    assert_whole(tmp_path / "s")


def test_interrupted_run_ends_in_the_same_store_even_with_failures(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(9)]
    whole = small.open_writer(tmp_path / "whole")
    small.write_rows(whole, "clips", keys, failing=["k1", "k6"])
    whole.finalise()
    halves = small.open_writer(tmp_path / "halves")
    plans = halves.plan("clips", keys)
    for plan in (plans[3], plans[0]):
        with halves.shard(plan) as shard:
            for key in plan.keys:
                if key in ("k1", "k6"):
                    shard.fail(key, "made to fail")
                else:
                    shard.write(key, small.row_of(key, small.SPECS["clips"]), small.facts_of(key))
    small.write_rows(halves, "clips", keys, failing=["k1", "k6"])
    halves.finalise()
    assert small.files_of(tmp_path / "halves") == small.files_of(tmp_path / "whole")


def test_failed_key_is_a_hole_and_is_tried_again_in_a_shard_of_its_own(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, "clips", small.CLIPS, failing=["b", "e"])
    assert writer.committed("clips") == {"a": 0, "c": 2, "d": 3}
    assert read_records(writer.folder, writer.schema)[0].failures == {"b": "made to fail"}
    assert not (tmp_path / "s" / small.MAPS / "c.2.0.0.0.0").exists(), "a shard without a success leaves nothing"
    plans = writer.plan("clips", small.CLIPS)
    assert [(plan.index, plan.keys) for plan in plans] == [(2, ("e",)), (3, ("b",))]
    small.write_rows(writer, "clips", small.CLIPS)
    assert writer.committed("clips") == {"a": 0, "c": 2, "d": 3, "e": 4, "b": 6}
    assert_whole(tmp_path / "s")


def test_statistics_are_those_of_all_rows_and_of_valid_places(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    store = FeatureStore(tmp_path / "s")
    maps = np.stack([small.row_of(key, small.SPECS["clips"])[small.MAPS] for key in small.CLIPS]).astype(np.float64)
    mean, std = store.statistics[small.MAPS]
    np.testing.assert_allclose(mean, maps.mean(axis=(0, 1, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(std, maps.std(axis=(0, 1, 3, 4)), rtol=1e-5)
    texts = [small.row_of(text_key(text), small.SPECS["text"]) for text in small.TEXTS]
    real = np.concatenate([row["text/roberta/features"][row["text/roberta/valid"]] for row in texts])
    mean, std = store.statistics["text/roberta/features"]
    assert mean.dtype == std.dtype == np.float32 and 0 < len(real) < 15
    np.testing.assert_allclose(mean, real.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std, real.std(axis=0), rtol=1e-4)


def test_constant_channel_has_deviation_one(tmp_path: Path) -> None:
    spec = ArraySpec(path="clips/x", shape=(3, 2), dtype="float32", axes=("t", "c"), statistics=True)
    writer = small.open_writer(tmp_path / "s", specs={"clips": [spec]}, rows_per_shard={"clips": 4})
    (plan,) = writer.plan("clips", ["a"])
    with writer.shard(plan) as shard:
        shard.write("a", {"clips/x": np.array([[7, 1], [7, 2], [7, 3]], np.float32)})
    mean, std = FeatureStore(tmp_path / "s").statistics["clips/x"]
    assert mean.tolist() == [7, 2] and std[0] == 1 and std[1] == pytest.approx(np.sqrt(2 / 3))


def test_infinite_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan("clips", ["a", "b"])
    bad = small.row_of("a", small.SPECS["clips"])
    bad[small.MAPS][0, 1, 2, 3] = np.inf
    with writer.shard(plan) as shard:
        with pytest.raises(StoreError, match=f"{small.MAPS} of 'a' holds values that are infinite or not a number"):
            shard.write("a", bad)
        shard.fail("a", "not finite")
        shard.write("b", small.row_of("b", small.SPECS["clips"]))
    assert writer.committed("clips") == {"b": 1}
    assert_whole(tmp_path / "s")


def test_rows_that_do_not_fit_are_our_own_mistake(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan("text", [text_key("x")])
    row = small.row_of("x", small.SPECS["text"])
    with pytest.raises(ValueError, match="neither written nor failed"), writer.shard(plan):
        pass
    with pytest.raises(ValueError, match="must have the string it is the key of"), writer.shard(plan) as shard:
        shard.write(text_key("x"), row, {"text": "y"})
    with pytest.raises(ValueError, match="not in the plan"), writer.shard(plan) as shard:
        shard.write("other", row)
    with pytest.raises(ValueError, match=r"is float64 \(5, 6\), the store has float32"), writer.shard(plan) as shard:
        row["text/roberta/features"] = row["text/roberta/features"].astype(np.float64)
        shard.write(text_key("x"), row, {"text": "x"})
    with pytest.raises(ValueError, match="has arrays"), writer.shard(plan) as shard:
        shard.write(text_key("x"), {}, {"text": "x"})
    assert not list((tmp_path / "s").rglob("c.*")) and not writer.committed("text")


def test_exception_in_a_shard_leaves_nothing(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan("clips", ["a", "b"])
    with pytest.raises(RuntimeError, match="encoder"), writer.shard(plan) as shard:
        shard.write("a", small.row_of("a", small.SPECS["clips"]))
        raise RuntimeError("encoder")
    assert not list((tmp_path / "s").rglob("c.*")) and not writer.committed("clips")


def test_shard_that_another_process_committed_is_left_alone(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan("clips", small.CLIPS)
    small.write_rows(writer, "clips", small.CLIPS)
    before = small.files_of(tmp_path / "s")
    with StoreWriter.attach(tmp_path / "s").shard(plans[0]) as shard:
        for key in plans[0].keys:
            shard.write(key, small.row_of("something else", small.SPECS["clips"]))
    assert shard.record is not None and shard.record.rows == {"a": 0, "b": 1}
    assert small.files_of(tmp_path / "s") == before


def test_writer_whose_files_were_swept_leaves_those_of_the_run_that_swept(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan("clips", ["a", "b"])
    with pytest.raises(FileNotFoundError), writer.shard(plan) as shard:
        for key in plan.keys:
            shard.write(key, small.row_of(key, small.SPECS["clips"]), small.facts_of(key))
        writer.folder.sweep()
        other = tmp_path / "s" / small.COARSE / "c.0.0.0.0.0"
        other.write_bytes(b"just published, not yet committed")
    assert other.read_bytes() == b"just published, not yet committed"


def test_other_encoder_is_refused_with_both_named(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    before = small.files_of(tmp_path / "s")
    other = small.ENCODERS | {"visual": small.ENCODERS["visual"] | {"weights": "random:0"}}
    with pytest.raises(StoreError) as raised:
        small.open_writer(tmp_path / "s", encoders=other)
    text = str(raised.value)
    assert f"weights={'a1' * 32}" in text and "weights=random:0" in text and text.count("swin@") == 2
    assert "name another store, or remove this one" in text
    with pytest.raises(StoreError, match=r"holds text roberta@.*, this run makes nothing"):
        small.open_writer(tmp_path / "s", encoders={k: v for k, v in small.ENCODERS.items() if k != "text"})
    assert small.files_of(tmp_path / "s") == before


def test_other_schema_is_refused_with_both_named(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    wider = ArraySpec(path="objects/mask", shape=(3, 12, 2), dtype="uint8", axes=("t", "h", "w"))
    both = r"objects/mask uint8 \(3, 11, 2\).*this run makes .*objects/mask uint8 \(3, 12, 2\)"
    with pytest.raises(StoreError, match=both):
        small.open_writer(tmp_path / "s", specs=small.SPECS | {"objects": [wider]})
    with pytest.raises(StoreError, match=r"3 frames of 11 px.*this run makes .*3 frames of 13 px"):
        small.open_writer(tmp_path / "s", input_size=13)


def test_existing_store_keeps_its_own_shard_size_and_source(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s")
    writer = small.open_writer(tmp_path / "s", source="moved", rows_per_shard={"clips": 9, "objects": 9, "text": 9})
    assert writer.schema.tables["clips"].rows_per_shard == 2 and writer.schema.source == "small"


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
    "path",
    ["clips/../../x", "/clips/x", "clips", "clips/x/", "other/x", "clips//x", "clips/a.b", "clips/\0", "clips/x\n"],
)
def test_array_path_that_could_leave_the_store_is_refused(path: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be used; accepted: names of letters"):
        ArraySpec(path=path, shape=(1,), dtype="uint8", axes=("t",))


def test_array_description_that_cannot_work_is_refused() -> None:
    for changes, text in (
        ({"dtype": "complex64"}, "of type 'complex64'; accepted: bool"),
        ({"shape": (0, 2)}, "accepted: positive sizes"),
        ({"axes": ("t",)}, "one name for each"),
        ({"axes": ("t", "h"), "statistics": True}, "must be called 'c'"),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=text):
            ArraySpec(**{"path": "clips/x", "shape": (2, 2), "dtype": "uint8", "axes": ("t", "c")} | changes)


def test_ids_cannot_leave_the_store(tmp_path: Path) -> None:
    ids = ("../../evil", "/etc/evil", "a\\b", "ü" * 90, "x" * 5000)
    small.write_store(tmp_path / "s", clips=ids)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert sorted(FeatureStore(tmp_path / "s").clips["id"]) == sorted(ids)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize("key", ["a\udcff", "a\0"])
def test_id_that_is_no_text_is_refused(tmp_path: Path, key: str) -> None:
    writer = small.open_writer(tmp_path / "s")
    with pytest.raises(StoreError, match=r"keys of clips, row 1: .* (is not valid Unicode; rename|holds a NUL)"):
        writer.plan("clips", ["0", key])


def test_expressions_of_missing_rows_or_columns_are_refused(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    frame = small.expressions(writer)
    with pytest.raises(StoreError, match=r"lack grade; needed: uid, vid"):
        writer.write_expressions(frame.drop(columns="grade"))
    with pytest.raises(StoreError, match=r"name row 77 of clips, which is not committed"):
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


@pytest.mark.parametrize("room", [0, 300, 1000, 1800, 2060, 2300, 2600, 3200])
def test_full_disk_leaves_no_committed_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    writer = small.open_writer(tmp_path / "s")
    plans = writer.plan("clips", small.CLIPS)
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
                shard.write(key, small.row_of(key, small.SPECS["clips"]), small.facts_of(key))
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
            small.write_rows(writer, "clips", keys)
            return 0

        assert run_command("refavs-extract", command_) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and "No space left on device; free space or name another folder" in text
        done = StoreWriter.attach(disk / "s").committed("clips")
        assert 0 < len(done) < 400 and not list((disk / "s").rglob("*.partial"))
        assert_whole(disk / "s")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLER = """
import importlib.util, os, random, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("small_store", sys.argv[1])
small = importlib.util.module_from_spec(spec); spec.loader.exec_module(small)
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


@pytest.mark.process
def test_killed_run_finishes_to_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(HERE / "small_store.py"), str(tmp_path)], capture_output=True, text=True
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
            assert_whole(root)
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
    (ours,) = writer.plan("clips", ["a", "b"])
    (late,) = writer.plan("clips", ["a", "b"])
    (other,) = writer.plan("clips", ["a", "c"])

    def write(plan: ShardPlan) -> None:
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, small.row_of(key, small.SPECS["clips"]), small.facts_of(key))

    write(ours)
    write(late)  # the same keys: what is there is as good
    with pytest.raises(StoreError, match="holds other keys than this run planned"):
        write(other)
    assert writer.committed("clips") == {"a": 0, "b": 1}
