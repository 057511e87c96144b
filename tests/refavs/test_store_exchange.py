"""A store goes out to one HDF5 file and comes back byte for byte; a file that is not to be trusted is one line."""

import errno
import fcntl
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, StoreWriter
from refavs.store.format.checksum import crc32c
from refavs.store.format.shard import shard_name
from refavs.store.hdf5 import exchange
from refavs.store.hdf5 import guarded_file as hdf5
from refavs.store.hdf5.exchange import export, import_
from refavs.store.verify import verify

_spec = importlib.util.spec_from_file_location("small_store", Path(__file__).parent / "small_store.py")
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
BACKBONE = ArraySpec(
    path=small.BACKBONE, shape=(3, 2, 4, 4), dtype="float16", axes=("t", "c", "h", "w"), statistics=True
)
SHARES = {"b": {"clips/visual": "a"}, "d": {"clips/visual": "a", "clips/audio": "a"}}


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here loses power, and fsync is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store with two levels, clips that share rows, and one that failed; no test changes it."""
    root = tmp_path_factory.mktemp("built") / "s"
    specs = small.SPECS | {"clips": [BACKBONE, *small.SPECS["clips"]]}
    writer = small.open_writer(root, specs=specs)
    for plan in writer.plan("clips", small.CLIPS, SHARES):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key == "c":
                    shard.fail(key, "made to fail")
                    continue
                arrays = [spec for spec in specs["clips"] if spec.path in plan.paths_of(key)]
                shard.write(key, small.row_of(key, arrays), small.facts_of(key))
    small.write_rows(writer, "text", [small.text_key(text) for text in small.TEXTS])
    small.write_rows(writer, "objects", [small.object_key(clip, 1) for clip in small.CLIPS])
    writer.write_expressions(small.expressions(writer))
    writer.finalise()
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
    assert told[-1][:2] == (total, total) and len(told) == sum(len(record.arrays) for record in store.records)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.process
def test_stranger_reads_the_file_with_plain_h5py(built: Path, exported: Path) -> None:
    store = FeatureStore(built)
    with h5py.File(exported) as file:
        keys = file["clips/key"].asstr()[:].tolist()
        assert keys == ["a", "b", "", "d", "e"]
        maps = file[small.MAPS]
        assert maps.shape == (5, 3, 4, 5, 6) and maps.dtype == "float16" and maps.chunks == (1, 3, 4, 5, 6)
        assert [axis.label for axis in maps.dims] == ["clip", "t", "c", "h", "w"] and maps.compression is None
        place = file["clips/visual_row"][keys.index("d")]
        np.testing.assert_array_equal(maps[place], store.read(small.MAPS, keys.index("d")))
        assert not maps[keys.index("d")].any(), "its own row is a hole"
        np.testing.assert_array_equal(maps.attrs["mean"], store.statistics[small.MAPS][0])
        assert file["text/string"].asstr()[:].tolist() == store.texts["text"].tolist()
        assert file["expressions/split"].asstr()[0] == store.expressions["split"][0]
        assert file["expressions/clip"][:].tolist() == store.expressions["clip"].tolist()
        np.testing.assert_array_equal(file["text/roberta/valid"][1], store.read("text/roberta/valid", 1))
        assert json.loads(file.attrs["encoders"].decode()) == store.encoders
        assert file.attrs["fingerprint"].decode() == store.fingerprint and file.attrs["T"] == 3
    code = f"import h5py; f = h5py.File({str(exported)!r}); print(f['clips/key'].asstr()[1], f['{small.AUDIO}'].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("b ")


def test_unfinished_store_goes_both_ways(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, "clips", ["a", "b", "c"], failing=["b"])
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "s") and not FeatureStore(tmp_path / "back").finished
    small.write_rows(small.open_writer(tmp_path / "back"), "clips", ["b", "d"])
    assert verify(tmp_path / "back").damage == ()


def test_empty_store_goes_both_ways(tmp_path: Path) -> None:
    small.open_writer(tmp_path / "s")
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "s")


def test_rows_in_another_order_stay_in_it(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s", rows_per_shard={"clips": 4, "objects": 3, "text": 4})
    (plan,) = writer.plan("clips", ["a", "b", "c"])
    with writer.shard(plan) as shard:
        for key in ("c", "a", "b"):
            shard.write(key, small.row_of(key, small.SPECS["clips"]), small.facts_of(key))
    writer.finalise()
    export(tmp_path / "s", tmp_path / "s.h5")
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "s")


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
    spec = ArraySpec(path="clips/any/x", shape=shape, dtype=dtype, axes=tuple("tchw"[: len(shape)]))
    writer = StoreWriter.open(
        root / "s", encoders={}, source="é", num_frames=1, input_size=1, specs={"clips": [spec]},
        rows_per_shard={"clips": size},
    )  # fmt: skip
    for plan in writer.plan("clips", keys):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if rng.random() < 0.3:
                    shard.fail(key, "made to fail")
                else:
                    row = rng.integers(0, 2, shape) if dtype == "bool" else rng.normal(size=shape) * 50
                    shard.write(key, {spec.path: np.abs(row).astype(dtype)}, {"é": key})
    if rng.random() < 0.7:
        writer.finalise()
    export(root / "s", root / "s.h5")
    import_(root / "s.h5", root / "back")
    assert content(root / "back") == content(root / "s")
    shutil.rmtree(root)


def test_file_that_is_there_is_left_alone(built: Path, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    assert export(built, file) == FeatureStore(built).fingerprint  # complete already: nothing to do
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.h5 is there already and is no export of .* name another file"):
        export(built, tmp_path / "notes.h5")
    other = small.write_store(tmp_path / "other")
    with pytest.raises(StoreError, match="is there already and is no export"):
        export(other.location, file)
    assert file.read_bytes() == whole and (tmp_path / "notes.h5").read_text() == "mine"


def test_file_that_comes_meanwhile_is_left_alone(built: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="come into being meanwhile"):
        export(built, tmp_path / "s.h5", lambda *_: (tmp_path / "s.h5").write_text("mine") and None)
    assert (tmp_path / "s.h5").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_export_to_a_file_system_without_locks_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(StoreError, match=r"s\.h5 would lie on a file system without locks \(No locks"):
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
        small.write_rows(writer, "clips", ["c"])

    with pytest.raises(StoreError, match="has changed while it was exported"):
        export(tmp_path / "s", tmp_path / "s.h5", meanwhile)
    assert not (tmp_path / "s.h5").exists()


def test_damaged_row_is_not_exported(built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    path = root / shard_name(BACKBONE, 0)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(StoreError, match=r"res2 of 'a' in .*c\.0\.0\.0\.0\.0 is damaged: its checksum.*repair"):
        export(root, tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.long
@pytest.mark.parametrize("after", [1, 5, 6])
def test_interrupted_export_and_import_go_on(
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

    def told(kept: Any, folder: Any, record: Any, path: str) -> None:
        written.append(path)
        read(kept, folder, record, path)

    monkeypatch.setattr(exchange, "_read_shard", told)
    import_(tmp_path / "s.h5", tmp_path / "back")
    assert content(tmp_path / "back") == content(built)
    every = sum(len(record.arrays) for record in FeatureStore(built).records)
    assert len(written) == every - (4 if after > 4 else 0)
    import_(tmp_path / "s.h5", tmp_path / "back")  # nothing left to do


def test_import_leaves_other_stores_and_folders_alone(file: Path, tmp_path: Path) -> None:
    small.write_store(tmp_path / "other", clips=["a"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    before = content(tmp_path / "other")
    with pytest.raises(StoreError, match=r"other holds another store than .*copy\.h5; name a new folder"):
        import_(file, tmp_path / "other")
    with pytest.raises(StoreError, match="holds files but no feature store"):
        import_(file, tmp_path / "notes")
    with pytest.raises(StoreError, match="is a file"):
        import_(file, file)
    assert content(tmp_path / "other") == before and len(list((tmp_path / "notes").iterdir())) == 1


def test_store_that_grew_after_its_export_is_left_alone(built: Path, exported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    small.write_rows(StoreWriter.attach(root), "text", [small.text_key("new")], texts=["new"])
    with pytest.raises(StoreError, match="holds another store"):
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


def names(*wanted: str) -> Callable[[h5py.File], None]:
    def do(file: h5py.File) -> None:
        found = file["refavs/files/name"][:].tolist()
        found[: len(wanted)] = [name.encode() for name in wanted]
        change("refavs/files/name", np.array(found, "S80"))(file)

    return do


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change(small.MAPS, h5py.ExternalLink("/etc/passwd", "/x")), "is a link to another place"),
        (change("clips/visual", h5py.SoftLink("/refavs")), "is a link to another place"),
        (change("refavs/files", h5py.ExternalLink("other.h5", "/refavs/files")), "is a link to another place"),
        (virtual, "lies in another file"),
        (outside, "lies in another file"),
        (loop, f"it has no {small.BACKBONE}|it has no {small.MAPS}"),
        (recreate(small.MAPS, chunks=(1, 3, 4, 5, 6), compression="gzip"), "is compressed or filtered"),
        (recreate(small.MAPS), "in chunks of None"),
        (recreate(small.MAPS, chunks=(2, 3, 4, 5, 6)), "its store says"),
        (recreate(small.MAPS, dtype="float32", chunks=(1, 3, 4, 5, 6)), "is float32"),
        (recreate(small.MAPS, data=None, shape=(5, 3, 4, 5, 6), dtype="f2", chunks=(1, 3, 4, 5, 6)), "no whole row"),
        (shorter, "has no row 4"),
        (lambda file: file.__delitem__(small.AUDIO), f"it has no {small.AUDIO}"),
        (lambda file: file[small.MAPS].write_direct(np.ones((1, 3, 4, 5, 6), "f2"), dest_sel=np.s_[4:5]),
         "mask_features of 'e' in .* is damaged: its checksum"),
        (lambda file: file["refavs/files/data"].__setitem__(5, 0), "is damaged: its checksum"),
        (lambda file: file["refavs/files/end"].__setitem__(-1, 10**9), "has no bytes"),
        (lambda file: file["refavs/files/end"].__setitem__(0, 10**9), "does not fit together"),
        (recreate("refavs/files/data", chunks=(2**25,), maxshape=(None,)), "claims"),
        (recreate("refavs/files/end", data=None, shape=(2**50,), dtype="i8", chunks=(8,)), "claims"),
        (recreate("refavs/about", data=np.frombuffer(b"[]", "u1")), "cannot be used"),
        (recreate("refavs/about", data=np.frombuffer(b"[" * 10**5, "u1")), "cannot be used"),
        (recreate("refavs/about", data=np.frombuffer(b'{"version":9,"fingerprint":1}', "u1")), "exchange version 9"),
        (change("refavs/about", "text"), "refavs/about is"),
        (names("../../../tmp/owned/zarr.json"), "which no store has"),
        (names("/etc/cron.d/x"), "which no store has"),
        (names("commits/../../zarr.json"), "which no store has"),
        (names("clips/audio/../../../zarr.json"), "which no store has"),
        (names("lease.json"), "which no store has"),
        (names(f"{small.MAPS}/c.0.0.0.0.0"), "which no store has"),
        (names("zarr.json", "zarr.json"), "does not fit together"),
    ],
)  # fmt: skip
def test_harmful_file_is_one_line(file: Path, tmp_path: Path, harm: Callable[[h5py.File], None], said: str) -> None:
    with h5py.File(file, "r+") as changed:
        harm(changed)
    line = refused(file, tmp_path / "back")
    assert re.search(said, line), line
    assert {path.name for path in tmp_path.iterdir()} <= {"copy.h5", "back"}


def forge(file: Path, name: str, old: bytes, new: bytes) -> None:
    """Changes a small file inside, with its checksums, as somebody with bad intentions does."""
    from refavs.store.format.commits import seal

    with h5py.File(file, "r+") as out:
        known = [one.decode() for one in out["refavs/files/name"][:]]
        place = known.index(name)
        ends = [0, *out["refavs/files/end"][:].tolist()]
        parts = [out["refavs/files/data"][a:b].tobytes() for a, b in pairwise(ends)]
        assert old in parts[place]
        parts[place] = parts[place].replace(old, new)
        if name.startswith("commits/"):
            parts[place] = seal(json.loads(parts[place])["record"])
        data = np.frombuffer(b"".join(parts), "u1")
        recreate("refavs/files/data", data=data)(out)
        out["refavs/files/end"][:] = np.cumsum([len(part) for part in parts])
        out["refavs/files/crc32c"][place] = crc32c(parts[place])


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("commits/clips-00002.json", b'"e"', b'"a"', "hold the same key twice"),
        ("commits/clips-00002.json", b'"rows":{"e":4}', b'"rows":{"e":5}', "cannot be used"),
        ("commits/text-00000.json", b'"bytes":', b'"bytes":1', "does not make the shard"),
        ("zarr.json", b'"rows_per_shard": 2', b'"rows_per_shard": 200000000', "rows_per_shard is '200000000'"),
        ("zarr.json", b'"float32"', b'"object"', "is of type 'object'"),
        ("zarr.json", small.AUDIO.encode(), b"clips/../../x", "cannot be used"),
        ("zarr.json", b"      7\n", b"      7000000000\n", "cannot be used|no whole row|the file has|bytes of|'7"),
        ("zarr.json", b'"version": 2', b'"version": 3', "schema version 3"),
    ],
)
def test_forged_file_is_one_line(file: Path, tmp_path: Path, name: str, old: bytes, new: bytes, said: str) -> None:
    forge(file, name, old, new)
    line = refused(file, tmp_path / "back")
    assert any(part in line for part in said.split("|")), line


def test_forged_statistics_do_not_pass_for_the_store(file: Path, tmp_path: Path) -> None:
    forge(file, "commits/clips-00002.json", b'"count":', b'"count":1')
    assert "says that it holds store" in refused(file, tmp_path / "back")


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


def test_full_disk_is_told_as_such(built: Path, tmp_path: Path) -> None:
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
    spec = ArraySpec(path="clips/any/x", shape=(4, 2**19), dtype="uint8", axes=("t", "c"))
    writer = StoreWriter.open(
        tmp_path / "s", encoders={}, source="", num_frames=1, input_size=1, specs={"clips": [spec]},
        rows_per_shard={"clips": 16},
    )  # fmt: skip
    (plan,) = writer.plan("clips", [f"{number:02d}" for number in range(16)])
    with writer.shard(plan) as shard:
        for key in plan.keys:
            shard.write(key, {spec.path: np.full(spec.shape, int(key), "uint8")})
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
