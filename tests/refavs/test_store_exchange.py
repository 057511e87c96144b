"""A store goes out to one HDF5 file and comes back byte for byte; a file that is not to be trusted is one line."""

import errno
import fcntl
import json
import re
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, StoreWriter, StreamSpec
from refavs.store.format.commits import seal
from refavs.store.hdf5 import exchange
from refavs.store.hdf5 import guarded_file as hdf5
from refavs.store.hdf5.exchange import export, import_
from refavs.store.verify import verify
from tests.refavs import small_store as small

STREAMS = small.STREAMS | {small.BACKBONE_STREAM: small.LEVEL}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store with two levels, and a clip whose frames failed; no test changes it."""
    root = tmp_path_factory.mktemp("built") / "s"
    small.write_store(root, failing=["c"], streams=STREAMS)
    return root


@pytest.fixture(scope="module")
def exported(built: Path) -> Path:
    """Its HDF5 file."""
    export(built, built.parent / "s.h5")
    return built.parent / "s.h5"


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copy(exported, tmp_path / "copy.h5"))


def content(root: Path) -> dict[str, bytes]:
    """Every byte of a store, its commit records' seconds included."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and path.name != ".lock"}  # fmt: skip


def test_store_comes_back_byte_for_byte(built: Path, exported: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    fingerprint = import_(exported, tmp_path / "back", lambda *facts: told.append(facts))
    assert content(tmp_path / "back") == content(built)
    store = FeatureStore(tmp_path / "back")
    assert store.finished and store.fingerprint == fingerprint == FeatureStore(built).fingerprint
    assert not verify(tmp_path / "back").damage
    total = sum(len(facts.rows) for record in store.records for facts in record.arrays.values())
    assert told[-1][:2] == (total, total) and len(told) == len(store.records)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.process
def test_stranger_reads_the_file_with_plain_h5py(built: Path, exported: Path) -> None:
    store = FeatureStore(built)
    with h5py.File(exported) as file:
        assert file["clips/id"].asstr()[:].tolist() == list(small.CLIPS)
        maps, rows = file[small.MAPS], file[f"clips/{small.VISUAL}/row"][:].tolist()
        assert rows == [0, 1, -1, 3, 4]
        keys = file[f"clips/{small.VISUAL}/key"].asstr()[:].tolist()
        assert keys == ["frames of a", "frames of b", "", "frames of d", "frames of e"]
        assert maps.shape == (5, 3, 4, 5, 6) and maps.dtype == "float16" and maps.chunks == (1, 3, 4, 5, 6)
        assert [axis.label for axis in maps.dims] == ["row", "t", "c", "h", "w"] and maps.compression is None
        np.testing.assert_array_equal(maps[rows[3]], store.read(small.MAPS, 3))
        assert not maps[2].any(), "a hole"
        np.testing.assert_array_equal(maps.attrs["mean"], store.statistics[small.MAPS][0])
        assert file["text/text"].asstr()[:].tolist() == store.texts["text"].tolist()
        assert file["expressions/split"].asstr()[0] == store.expressions["split"][0]
        assert file["expressions/clip"][:].tolist() == store.expressions["clip"].tolist()
        np.testing.assert_array_equal(file[small.VALID][1], store.read(small.VALID, 1))
        assert json.loads(file.attrs["refavs_schema"].decode())["streams"][small.SOUND]["fingerprint"] == (
            store.encoders[small.SOUND])  # fmt: skip
        assert file.attrs["fingerprint"].decode() == store.fingerprint and file.attrs["seconds"] == 3
    code = f"import h5py; f = h5py.File({str(exported)!r}); print(f['clips/id'].asstr()[1], f['{small.AUDIO}'].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("b ")


def test_unfinished_store_goes_both_ways(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.add_clips(writer, ["a", "b", "c"], failing=["b"])
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "s") and not FeatureStore(tmp_path / "back").finished
    small.add_clips(small.open_writer(tmp_path / "back"), ["b", "d"])
    assert verify(tmp_path / "back").damage == ()


def test_empty_store_goes_both_ways(tmp_path: Path) -> None:
    small.open_writer(tmp_path / "s")
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "s")


def test_rows_written_in_another_order_are_read_by_place(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    (plan,) = writer.plan(small.TEXT, [["a", "b", "c"]])
    assert plan is not None
    with writer.shard(plan) as shard:
        for key in ("c", "a", "b"):
            shard.write(key, small.row_of(key, small.STREAMS[small.TEXT].arrays))
    writer.finalise()
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    small.assert_whole(tmp_path / "back")
    assert StoreWriter.attach(tmp_path / "back").committed(small.TEXT) == writer.committed(small.TEXT)


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=SHAPES, dtype=st.sampled_from(["bool", "uint8", "int64", "float16", "float32", "float64"]),
    keys=st.sets(st.text("abé/ '", min_size=1, max_size=5), min_size=1, max_size=7), size=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_small_store_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, keys: set[str], size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("any")
    spec = ArraySpec(name="x", shape=shape, dtype=dtype, axes=tuple("tchw"[: len(shape)]))
    stream = StreamSpec(fingerprint={}, arrays=(spec,), rows_per_shard=size)
    writer = small.open_writer(root / "s", streams={"audio/any": stream}, source="é")
    for plan in writer.plan("audio/any", small.groups_of(sorted(keys), size)):
        assert plan is not None
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if rng.random() < 0.3:
                    shard.fail(key, "made to fail")
                else:
                    row = rng.integers(0, 2, shape) if dtype == "bool" else rng.normal(size=shape) * 50
                    shard.write(key, {"x": np.abs(row).astype(dtype)}, {"é": key})
    writer.finalise() if rng.random() < 0.7 else writer.describe()
    export(root / "s", root / "s.h5")
    import_(root / "s.h5", root / "back")
    assert content(root / "back") == content(root / "s")
    shutil.rmtree(root)


def test_file_that_is_there_is_left_alone(built: Path, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    assert export(built, file) == FeatureStore(built).fingerprint  # complete already: nothing to do
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.h5 exists and is not an export of .* name another file"):
        export(built, tmp_path / "notes.h5")
    other = small.write_store(tmp_path / "other")
    with pytest.raises(StoreError, match="exists and is not an export"):
        export(other.location, file)
    assert file.read_bytes() == whole and (tmp_path / "notes.h5").read_text() == "mine"


def test_file_that_comes_meanwhile_is_left_alone(built: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="created by another process"):
        export(built, tmp_path / "s.h5", lambda *_: (tmp_path / "s.h5").write_text("mine") and None)
    assert (tmp_path / "s.h5").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_export_to_a_file_system_without_locks_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(StoreError, match=r"s\.h5 is on a file system without locks \(No locks"):
        export(built, tmp_path / "s.h5")


def test_two_exports_to_one_file_do_not_mix(built: Path, tmp_path: Path) -> None:
    lines = []

    def meanwhile(*_: object) -> None:
        if not lines:
            with pytest.raises(StoreError, match="another process is writing") as caught:
                export(built, tmp_path / "s.h5")
            lines.append(str(caught.value))

    export(built, tmp_path / "s.h5", meanwhile)
    assert lines and [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_store_that_changes_while_it_is_exported_is_refused(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s", clips=["a", "b"])

    def meanwhile(*_: object) -> None:
        small.add_clips(writer, ["c"])

    with pytest.raises(StoreError, match="changed during the export"):
        export(tmp_path / "s", tmp_path / "s.h5", meanwhile)
    assert not (tmp_path / "s.h5").exists()


def test_damaged_row_is_not_exported(built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    path = root / f"{small.BACKBONE}/c.0.0.0.0.0"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(StoreError, match=r"res2 of 'frames of a' in .*c.0.0.0.0.0 is damaged: its.*repair"):
        export(root, tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.long
@pytest.mark.parametrize("after", [1, 5, 6])
def test_interrupted_export_and_import_resume(
    built: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping() -> Callable[[int, int, str], None]:
        told: list[str] = []

        def stop(done: int, total: int, note: str) -> None:
            told.append(note)
            if len(told) == after:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        export(built, tmp_path / "s.h5", stopping())
    (tmp_path / "s.h5.partial").write_text("left by a process that was killed")
    export(built, tmp_path / "s.h5")

    with pytest.raises(KeyboardInterrupt):
        import_(tmp_path / "s.h5", tmp_path / "back", stopping())
    assert not FeatureStore(tmp_path / "back").finished
    written: list[str] = []
    read = exchange._read_shard

    def told(kept: Any, folder: Any, schema: Any, record: Any) -> Any:
        written.append(record.file)
        return read(kept, folder, schema, record)

    monkeypatch.setattr(exchange, "_read_shard", told)
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(built)
    assert len(written) == len(FeatureStore(built).records) - after
    import_(tmp_path / "s.h5", tmp_path / "back")  # nothing left to do


def test_import_leaves_other_stores_and_folders_alone(file: Path, tmp_path: Path) -> None:
    small.write_store(tmp_path / "other", clips=["a"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    before = content(tmp_path / "other")
    with pytest.raises(StoreError, match=r"other contains another store than .*copy\.h5; name a new folder"):
        import_(file, tmp_path / "other")
    with pytest.raises(StoreError, match="holds files but no feature store"):
        import_(file, tmp_path / "notes")
    with pytest.raises(StoreError, match="is a file"):
        import_(file, file)
    assert content(tmp_path / "other") == before and len(list((tmp_path / "notes").iterdir())) == 1


def test_store_that_grew_after_its_export_is_left_alone(built: Path, exported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    small.write_rows(StoreWriter.attach(root), small.TEXT, [small.text_key("new")])
    with pytest.raises(StoreError, match="contains another store"):
        import_(exported, root)


def refused(file: Path, to: Path) -> str:
    """The one line that says why a file is not imported; nothing of a store is there afterwards."""
    with pytest.raises(StoreError) as caught:
        import_(file, to)
    assert not (to / "zarr.json").exists() or not FeatureStore(to).finished
    return str(caught.value)


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 3000, -1, -5000])
def test_cut_file_is_one_line(file: Path, tmp_path: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:num_bytes])
    assert f"{file} cannot be used (" in refused(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_other_files_are_one_line(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "none.h5", tmp_path / "back")
    assert "cannot be used" in refused(tmp_path, tmp_path / "back")
    (tmp_path / "page.h5").write_text("<html>")
    assert "page.h5 cannot be used" in refused(tmp_path / "page.h5", tmp_path / "back")
    with h5py.File(tmp_path / "foreign.h5", "w") as foreign:
        foreign["x"] = np.zeros(3)
    assert "it has no refavs/about" in refused(tmp_path / "foreign.h5", tmp_path / "back")


def change(path: str, value: object) -> Callable[[h5py.File], None]:
    def do(file: h5py.File) -> None:
        del file[path]
        file[path] = value

    return do


def virtual(file: h5py.File) -> None:
    del file[small.MAPS]
    layout = h5py.VirtualLayout(shape=(5, 3, 4, 5, 6), dtype="float16")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(5, 3, 4, 5, 6))
    file.create_virtual_dataset(small.MAPS, layout)


def outside(file: h5py.File) -> None:
    del file["refavs/about"]
    file.create_dataset("refavs/about", (9,), "uint8", external=[("/etc/hostname", 0, 9)])


def recreate(path: str, **how: object) -> Callable[[h5py.File], None]:
    def do(file: h5py.File) -> None:
        values = file[path][:]
        del file[path]
        file.create_dataset(path, **({"data": values} | how))

    return do


def shorter(file: h5py.File) -> None:
    recreate(small.MAPS, data=file[small.MAPS][:2], chunks=(1, 3, 4, 5, 6))(file)


def loop(file: h5py.File) -> None:
    del file["clips/visual"]
    file["clips/visual"] = file["clips"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change(small.MAPS, h5py.ExternalLink("/etc/passwd", "/x")), "is a soft or external link"),
        (change("clips/visual", h5py.SoftLink("/refavs")), "is a soft or external link"),
        (change("refavs/records", h5py.ExternalLink("other.h5", "/refavs/records")), "is a soft or external link"),
        (virtual, "is stored in another file"),
        (outside, "is stored in another file"),
        (loop, "it has no clips/visual/swin"),
        (recreate(small.MAPS, chunks=(1, 3, 4, 5, 6), compression="gzip"), "is compressed or filtered"),
        (recreate(small.MAPS), "in chunks of None"),
        (recreate(small.MAPS, chunks=(2, 3, 4, 5, 6)), "its store says"),
        (recreate(small.MAPS, dtype="float32", chunks=(1, 3, 4, 5, 6)), "is float32"),
        (recreate(small.MAPS, data=None, shape=(5, 3, 4, 5, 6), dtype="f2", chunks=(1, 3, 4, 5, 6)), "no complete row"),
        (shorter, "has no row 3"),
        (lambda file: file.__delitem__(small.AUDIO), f"it has no {small.AUDIO}"),
        (lambda file: file[small.MAPS].write_direct(np.ones((1, 3, 4, 5, 6), "f2"), dest_sel=np.s_[4:5]),
         "mask_features of 'frames of e' in .* is damaged: its checksum"),
        (lambda file: file["refavs/records"].__setitem__(40, 0), "cannot be used|is damaged"),
        (lambda file: file["refavs/about"].__setitem__(40, 0), "cannot be used"),
        (recreate("refavs/records", chunks=(2**25,), maxshape=(None,)), "claims"),
        (recreate("refavs/about", data=None, shape=(2**50,), dtype="u1", chunks=(8,)), "claims"),
        (recreate("clips/seconds", data=np.full(5, 2)), "the table clips in .* is damaged"),
        (recreate("clips/id", data=np.array([b"a", b"b", b"c", b"d", b"../x"], "S4")), "the table clips in .* damaged"),
        (recreate("refavs/about", data=np.frombuffer(b"[]", "u1")), "cannot be used"),
        (recreate("refavs/about", data=np.frombuffer(b"[" * 10**5, "u1")), "cannot be used"),
        (recreate("refavs/about", data=np.frombuffer(b'{"record":{"version":9}}', "u1")), "exchange version 9"),
        (change("refavs/about", "text"), "refavs/about is"),
    ],
)  # fmt: skip
def test_harmful_file_is_one_line(file: Path, tmp_path: Path, harm: Callable[[h5py.File], None], said: str) -> None:
    with h5py.File(file, "r+") as changed:
        harm(changed)
    line = refused(file, tmp_path / "back")
    assert re.search(said, line), line
    assert {path.name for path in tmp_path.iterdir()} <= {"copy.h5", "back"}


def forge(file: Path, name: str, old: bytes, new: bytes) -> None:
    """Changes the description or a commit record inside, with its checksum, as somebody with bad intentions does."""
    with h5py.File(file, "r+") as out:
        lines = out[name][:].tobytes().splitlines()
        place = next(place for place, line in enumerate(lines) if old in line)
        lines[place] = seal(json.loads(lines[place].replace(old, new))["record"])
        recreate(name, data=np.frombuffer(b"\n".join(lines), "u1"))(out)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("refavs/records", b'{"frames of e":4}', b'{"frames of a":4}', "cannot be used"),
        ("refavs/records", b'{"frames of e":4}', b'{"frames of e":5}', "cannot be used"),
        ("refavs/records", b'"table":"text/roberta"', b'"table":"../../x"', "cannot be used"),
        ("refavs/about", b'"rows_per_shard":4', b'"rows_per_shard":400000000', "rows_per_shard is '400000000'"),
        ("refavs/about", b'"shape":[3,7]', b'"shape":[3,7000000000]', "cannot be used|'7000000000'"),
        ("refavs/about", b'"audio/vggish"', b'"audio/../../x"', "cannot be used"),
        ("refavs/about", b'"version":3', b'"version":4', "schema version 4"),
    ],
)
def test_forged_file_is_one_line(file: Path, tmp_path: Path, name: str, old: bytes, new: bytes, said: str) -> None:
    forge(file, name, old, new)
    line = refused(file, tmp_path / "back")
    assert any(part in line for part in said.split("|")), line


def test_forged_statistics_do_not_pass_for_the_store(file: Path, tmp_path: Path) -> None:
    with h5py.File(file) as known:
        (line,) = [line for line in known["refavs/records"][:].tobytes().splitlines() if b"text/roberta" in line]
    count = re.search(rb'"count":\d+,"sum":"[^"]+', line)
    assert count is not None
    forge(file, "refavs/records", count[0], count[0].replace(b'"count":', b'"count":1'))
    assert "claims to contain store" in refused(file, tmp_path / "back")


@pytest.mark.long
@pytest.mark.parametrize("num_flips", [12, pytest.param(200, marks=pytest.mark.faults)])
def test_flipped_bytes_are_one_line_or_harmless(built: Path, file: Path, tmp_path: Path, num_flips: int) -> None:
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    wrong = content(built)
    for number, byte in enumerate(rng.integers(0, len(whole), num_flips)):
        data = bytearray(whole)
        data[byte] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            import_(file, tmp_path / f"back{number}")
        except StoreError:
            continue
        assert content(tmp_path / f"back{number}") == wrong, "what was changed is not a part of the store"


def test_full_disk_is_reported(built: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            export(built, tmp_path / "s.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "s.h5")
    assert not list(tmp_path.iterdir())
    export(built, tmp_path / "s.h5")


def test_memory_holds_one_row(tmp_path: Path) -> None:
    spec = ArraySpec(name="x", shape=(4, 2**19), dtype="uint8", axes=("t", "c"))
    stream = StreamSpec(fingerprint={}, arrays=(spec,), rows_per_shard=16)
    writer = small.open_writer(tmp_path / "s", streams={"audio/any": stream})
    (plan,) = writer.plan("audio/any", [[f"{number:02d}" for number in range(16)]])
    assert plan is not None
    with writer.shard(plan) as shard:
        for key in plan.keys:
            shard.write(key, {"x": np.full(spec.shape, int(key), "uint8")})
    tracemalloc.start()
    try:
        export(tmp_path / "s", tmp_path / "s.h5")
        import_(tmp_path / "s.h5", tmp_path / "back")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * spec.row_bytes + 2**21, peak
    assert content(tmp_path / "back") == content(tmp_path / "s")


def test_strings_are_as_wide_as_the_longest() -> None:
    values = hdf5.strings(np.frombuffer(b"ab\0\xc3\xa9c", np.uint8).reshape(2, 3))
    assert values.dtype.itemsize == 3 and values.tolist() == [b"ab", "éc".encode()]
