"""Folders keep one contract wherever they lie; a store written to S3 is the one written locally, and read as such."""

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import secrets
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from refavs.data.batches import batches
from refavs.errors import StoreError
from refavs.files.atomic import write_all
from refavs.store import FeatureStore
from refavs.store.backends.base import Folder, LocalFolder
from refavs.store.backends.object_store import PART_BYTES, RemoteFile, RemoteFolder, _scratch_folder
from refavs.store.folders import open_folder
from refavs.store.verify import verify
from tests.refavs import servers

endpoint, bucket, website, local = servers.endpoint, servers.bucket, servers.website, servers.local
small = servers.small
SECRET, KINDS = servers.SECRET, ("local", "memory", "s3")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "s3":
        return open_folder(request.getfixturevalue("bucket"))
    return open_folder(tmp_path / "store" if request.param == "local" else f"memory://{secrets.token_hex(6)}")


def publish(folder: Folder, name: str, data: bytes) -> None:
    """Writes a file as a shard is written."""
    scratch = folder.scratch(name)
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    write_all(file, memoryview(data))
    os.close(file)
    folder.publish(scratch, name)
    assert not scratch.exists()


def test_folder_returns_the_written_bytes(folder: Folder) -> None:
    assert isinstance(folder, Folder)
    for data in (b"old", b"", b"new" * 1000):
        folder.write("clips/zarr.json", data)
        assert folder.read("clips/zarr.json") == data and folder.exists("clips/zarr.json")
        assert folder.open("clips/zarr.json").num_bytes == len(data)
    assert folder.where("clips/zarr.json") == f"{folder.location}/clips/zarr.json"


def test_folder_lists_only_written_files(folder: Folder) -> None:
    folder.write("clips/a", b"a")
    for name in ("clips/b", "clips", "a", "clips/a/b"):
        assert not folder.exists(name)
    for call in (folder.read, folder.open):
        with pytest.raises(FileNotFoundError) as caught:
            call("clips/b")
        assert caught.value.filename == folder.where("clips/b") and "\n" not in str(caught.value)
    folder.remove("clips/b")


def test_folder_lists_files_at_any_depth(folder: Folder) -> None:
    assert folder.names() == [] == folder.names("commits")
    names = ["commits/b.json", "zarr.json", "clips/audio/vggish/c.0.0.0", "commits/a.json", "commits-old/c.json"]
    for name in names:
        folder.write(name, b"x")
    assert folder.names() == sorted(names)
    assert folder.names("commits") == ["commits/a.json", "commits/b.json"]
    assert folder.names("clips/audio") == ["clips/audio/vggish/c.0.0.0"]
    folder.remove("zarr.json")
    assert not folder.exists("zarr.json") and "zarr.json" not in folder.names()


def test_folder_moves_a_file_and_removes_a_folder(folder: Folder) -> None:
    for name in ("clips/a/c.0", "clips/a/b/c.0", "clips/ab/c.0"):
        folder.write(name, name.encode())
    folder.move("clips/a/c.0", "text/x/y/c.1")
    assert folder.read("text/x/y/c.1") == b"clips/a/c.0" and not folder.exists("clips/a/c.0")
    folder.remove_all("clips/a")
    folder.remove_all("clips/nothing")
    assert folder.names() == ["clips/ab/c.0", "text/x/y/c.1"]
    assert not isinstance(folder, LocalFolder) or not (folder.path / "clips/a").exists()


@pytest.mark.long
def test_folder_publishes_a_file_whole(folder: Folder) -> None:
    folder.write("clips/c.0", b"before")
    scratch = folder.scratch("clips/c.0")
    scratch.write_bytes(b"half")
    assert folder.read("clips/c.0") == b"before"
    scratch.unlink()
    data = np.random.default_rng(0).integers(0, 256, 2 * PART_BYTES + 17, np.uint8)
    publish(folder, "clips/c.0", data.tobytes())
    blob = folder.open("clips/c.0")
    assert blob.num_bytes == data.size
    for start, stop in [(0, data.size), (5, 5), (data.size - 3, data.size), (PART_BYTES - 1, 2 * PART_BYTES + 1)]:
        found = blob.read(start, stop)
        assert found.dtype == np.uint8 and found.flags.writeable and np.array_equal(found, data[start:stop])
    blob.read(0, 100)[:] = 0
    assert folder.read("clips/c.0", data.size) == data.tobytes()
    with pytest.raises(OSError, match=r"it has 16,777,233 bytes; a file of this kind has 16,777,216 at most"):
        folder.read("clips/c.0")


def test_folder_sweeps_only_files_without_a_writer(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    folder.sweep()
    assert folder.names() == ["zarr.json"]


def test_folder_creates_once(folder: Folder) -> None:
    assert folder.create("lease.json", b"mine") and not folder.create("lease.json", b"yours")
    assert not folder.create("lease.json", b"mine")
    assert folder.read("lease.json") == b"mine"
    folder.remove("lease.json")
    assert folder.create("lease.json", b"yours")


def test_folder_swaps_only_unchanged_files(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    assert not folder.swap("lease.json", b"old", b"new") and not folder.exists("lease.json")
    folder.write("lease.json", b"old")
    assert folder.swap("lease.json", b"old", b"new") and folder.read("lease.json") == b"new"
    assert not folder.swap("lease.json", b"old", b"newer") and folder.read("lease.json") == b"new"
    assert folder.swap("lease.json", b"new", b"new")


def test_folder_lets_one_of_many_succeed(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    contenders = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda data: open_folder(folder.location).create("lease.json", data), contenders))
        assert created.count(True) == 1 and folder.read("lease.json") == contenders[created.index(True)]
        held = folder.read("lease.json")
        swap = lambda data: open_folder(folder.location).swap("lease.json", held, data + b"!")  # noqa: E731
        swapped = list(pool.map(swap, contenders))
        assert swapped.count(True) == 1 and folder.read("lease.json") == contenders[swapped.index(True)] + b"!"


def test_folder_is_the_same_after_pickling(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    other = pickle.loads(pickle.dumps(folder))
    assert other.location == folder.location and other.read("zarr.json") == b"x"
    assert SECRET.encode() not in pickle.dumps(folder)


def test_sweep_removes_scratch_files_of_dead_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living = (Path(tempfile.mkdtemp(prefix=f"refavs-scratch-{os.getuid()}-")) for _ in range(2))
    for folder in (dead, living):
        (folder / "c.0.0badcafe").write_bytes(b"half")
    others = Path(tempfile.mkdtemp(prefix=f"refavs-scratch-{os.getuid()}-")) / "film.mkv"
    others.write_bytes(b"mine")
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert RemoteFolder("memory://swept").sweep() == [str(dead / "c.0.0badcafe")]
    os.close(lock)
    assert not dead.exists() and (living / "c.0.0badcafe").exists() and others.exists()


def test_temporary_folder_without_locks_is_written_and_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", flock)
    folder = _scratch_folder(-1)  # of no process, so that it is made anew
    (folder / "c.0").write_bytes(b"half")
    assert RemoteFolder("memory://swept").sweep() == [] and (folder / "c.0").exists()


def test_memory_is_shared_by_name() -> None:
    one, other = RemoteFolder("memory://some"), RemoteFolder("memory://other")
    one.write("a", b"1")
    RemoteFolder("memory://some/below").write("b", b"2")
    assert open_folder("memory://some/").names() == ["a", "below/b"] and other.names() == []


@pytest.mark.process
def test_spawned_process_reads_what_this_one_wrote(bucket: str) -> None:
    folder = RemoteFolder(bucket)
    folder.write("a", b"1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(RemoteFolder.read, (folder, "a")) == b"1"


def test_google_folder_needs_no_network_before_its_first_use() -> None:
    folder = RemoteFolder("gs://bucket/some/prefix")
    assert folder.key("zarr.json") == "some/prefix/zarr.json" and folder.where("a") == "gs://bucket/some/prefix/a"


def test_website_is_read_by_ranges_and_never_written(website: str, tmp_path: Path) -> None:
    LocalFolder(tmp_path).write("a b/c.0", bytes(range(100)))
    folder = open_folder(website)
    assert folder.read("a b/c.0") == bytes(range(100))
    assert folder.open("a b/c.0").read(10, 13).tolist() == [10, 11, 12]
    assert folder.exists("a b/c.0") and not folder.exists("a b/c.1")
    with pytest.raises(FileNotFoundError):
        folder.open("a b/c.1")
    for call in (lambda: folder.write("a", b""), lambda: folder.create("a", b""), lambda: folder.swap("a", b"", b"1"),
                 lambda: folder.remove("a"), lambda: folder.scratch("a"), lambda: folder.sweep()):  # fmt: skip
        with pytest.raises(OSError, match="a store behind a web server can only be read"):
            call()


def without_seconds(name: str, data: bytes) -> bytes:
    """The bytes of a file, of a commit record without the one fact that differs between two runs."""
    facts = json.loads(data) if name.startswith("commits/") else {}
    if "seconds" not in facts.get("record", {}):
        return data
    return json.dumps(facts["record"] | {"seconds": 0}, sort_keys=True).encode()


@pytest.fixture(scope="module")
def remote(endpoint: str) -> RemoteFolder:
    """The small store on S3, written there."""
    location = "s3://features/small/store"
    servers.write_small(location)
    return RemoteFolder(location)


@pytest.mark.long
def test_store_on_s3_is_byte_for_byte_the_local_one(local: LocalFolder, remote: RemoteFolder) -> None:
    assert remote.names() == local.names()
    for name in local.names():
        assert without_seconds(name, remote.read(name)) == without_seconds(name, local.read(name)), name


@pytest.mark.long
def test_samples_from_s3_are_those_of_the_disk(local: LocalFolder, remote: RemoteFolder) -> None:
    ours, theirs = FeatureStore(local.location), FeatureStore(remote.location)
    assert theirs.finished and theirs.fingerprint == ours.fingerprint and len(theirs) == len(ours) > 0
    for one, other in zip(ours, pickle.loads(pickle.dumps(theirs)), strict=True):
        assert (one.uid, one.text_string) == (other.uid, other.text_string)
        assert one.visual.keys() == other.visual.keys()
        for name in one.visual:
            assert torch.equal(one.visual[name], other.visual[name])
        for name in ("audio", "text", "valid", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    theirs.sample(0).audio.zero_()
    assert torch.equal(theirs.sample(0).audio, ours.sample(0).audio)


@pytest.mark.long
def test_batch_asks_the_server_once_for_each_clip_text_and_mask(
    local: LocalFolder, remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each expression."""
    ours, theirs = FeatureStore(local.location), FeatureStore(remote.location)
    order = [0, 1, 2, 3, 0, 1]
    _ = theirs.statistics, list(theirs)  # every shard is open then
    asked: Counter[tuple[str, int]] = Counter()
    part = RemoteFile._part

    def counted(file: RemoteFile, start: int, stop: int) -> np.ndarray:
        asked[file._name, start] += 1
        return part(file, start, stop)

    monkeypatch.setattr(RemoteFile, "_part", counted)
    (found,) = batches(theirs, order, len(order))
    facts = [ours.facts[index] for index in order]
    clips, texts, objects = (len({fact[name] for fact in facts}) for name in ("clip", "text_row", "object"))
    assert (len(found.audio), clips) == (2, 2) and set(asked.values()) == {1}
    assert asked.total() == clips * (len(found.visual) + 1) + 2 * texts + 2 * objects
    (wanted,) = batches(ours, order, len(order))
    assert found.mask is not None and wanted.mask is not None and torch.equal(found.mask, wanted.mask)
    assert all(torch.equal(found.visual[name], wanted.visual[name]) for name in wanted.visual)


@pytest.mark.long
def test_a_second_run_on_s3_has_nothing_to_do(remote: RemoteFolder) -> None:
    before = {name: remote.read(name) for name in remote.names()}
    servers.write_small(remote.location)
    assert {name: remote.read(name) for name in remote.names()} == before


@pytest.mark.long
def test_zarr_python_and_tensorstore_read_the_store_on_s3(endpoint: str, remote: RemoteFolder) -> None:
    import tensorstore
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    store = FeatureStore(remote.location)
    bucket = S3Store("features", prefix="small/store", client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    for path in (small.MAPS, small.AUDIO):
        spec = {"driver": "zarr3", "kvstore": {
            "driver": "s3", "bucket": "features", "path": f"small/store/{path}/", "endpoint": endpoint,
            "aws_region": "us-east-1", "aws_credentials": {"type": "environment"}}}  # fmt: skip
        array = tensorstore.open(spec).result()
        for row in store.clips.index:
            expected = store.read(path, row).numpy()
            assert np.array_equal(np.asarray(group[path][row]), expected)
            assert np.array_equal(array[row].read().result(), expected)


@pytest.mark.long
def test_store_behind_a_web_server_is_read_and_verified(
    local: LocalFolder, website: str, tmp_path: Path
) -> None:
    shutil.copytree(local.path, tmp_path / "store")
    store = FeatureStore(f"{website}/store")
    assert store.fingerprint == FeatureStore(local.location).fingerprint
    assert torch.equal(store.sample(3).audio, FeatureStore(local.location).sample(3).audio)
    assert verify(f"{website}/store").damage == ()
    (tmp_path / "store/commits/listing.json").unlink()
    with pytest.raises(StoreError, match="there is no list of commit records, which a store behind a web server needs"):
        FeatureStore(f"{website}/store")
