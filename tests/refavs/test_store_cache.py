"""The disk cache of remote stores: each byte comes once, stays bounded, and is never wrong."""

import functools
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from refavs.errors import ConfigError, StoreError
from refavs.store import FeatureStore
from refavs.store.backends import disk_cache
from refavs.store.backends.base import LocalFolder
from refavs.store.backends.disk_cache import BLOCK_BYTES, BLOCKS, CachedFile, DiskCache, cache_in_use, use_cache
from refavs.store.folders import open_folder
from tests.refavs import servers

small, local = servers.small, servers.local
CONTENT = np.random.default_rng(0).integers(0, 256, 5 * BLOCK_BYTES + 1000).astype(np.uint8)
CHILD = """
import sys
from pathlib import Path
from refavs.store.backends.disk_cache import DiskCache
from tests.refavs.test_store_cache import Counted, read_all
file = Counted()
print("ready", flush=True)
while True:
    read_all(DiskCache(Path(sys.argv[1]), int(sys.argv[2])).opened(file))
"""


class Counted:
    """A file on a server, of known content, that counts what is read of it."""

    mapped = False

    def __init__(self, version: str = "one", content: UInt8[np.ndarray, " b"] = CONTENT) -> None:
        self.version, self.num_bytes, self._content = version, len(content), content
        self.num_read = 0

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " b"]:
        """A copy of the bytes."""
        self.num_read += stop - start
        return self._content[start:stop].copy()


def read_all(file: CachedFile) -> None:
    """Reads parts of every length in an order of its own, each right."""
    rng = np.random.default_rng()
    for start, length in zip(rng.integers(0, len(CONTENT), 20), rng.integers(1, 3 * BLOCK_BYTES, 20), strict=True):
        stop = min(start + length, len(CONTENT))
        assert np.array_equal(file.read(int(start), int(stop)), CONTENT[start:stop])


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    """A cache with room for everything."""
    found = DiskCache(tmp_path / "cache", 10**9)
    found.blocks.mkdir(parents=True)
    return found


def used_bytes(cache: DiskCache) -> int:
    """What the blocks take up on the disk."""
    return sum(path.stat().st_blocks * 512 for path in cache.blocks.glob("*.bytes"))


def test_each_byte_is_fetched_once(cache: DiskCache) -> None:
    file = Counted()
    for _ in range(5):
        read_all(cache.opened(file))
    cache.opened(file).read(0, len(CONTENT))
    assert file.num_read == len(CONTENT)
    cache.opened(other := Counted()).read(7, len(CONTENT) - 7)
    assert other.num_read == 0  # another process, the same version of the file


def test_another_version_is_another_file(cache: DiskCache) -> None:
    cache.opened(Counted()).read(0, len(CONTENT))
    changed = Counted("two", CONTENT[::-1].copy())
    assert np.array_equal(cache.opened(changed).read(0, 3000), CONTENT[::-1][:3000])


@pytest.mark.parametrize("damage", ["a flipped bit", "a hole", "cut off", "marks cut off", "a mark of another block"])
def test_damage_on_the_disk_is_fetched_again(cache: DiskCache, damage: str) -> None:
    cache.opened(Counted()).read(0, len(CONTENT))
    (data,), (marks,) = cache.blocks.glob("*.bytes"), cache.blocks.glob("*.marks")
    content = bytearray(data.read_bytes())
    if damage == "a flipped bit":
        content[2 * BLOCK_BYTES + 5] ^= 16
    elif damage == "a hole":
        content[BLOCK_BYTES : 2 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    elif damage == "cut off":
        del content[3 * BLOCK_BYTES + 7 :]
    elif damage == "marks cut off":
        marks.write_bytes(marks.read_bytes()[:20])
    else:
        marks.write_bytes(marks.read_bytes()[8:16] + marks.read_bytes()[8:])
    data.write_bytes(content)
    file = Counted()
    assert np.array_equal(cache.opened(file).read(0, len(CONTENT)), CONTENT)
    assert 0 < file.num_read < len(CONTENT)
    cache.opened(again := Counted()).read(0, len(CONTENT))
    assert again.num_read == 0


def test_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3 * len(CONTENT))
    cache.blocks.mkdir()
    (tmp_path / "mine.bytes").write_bytes(b"x" * 100)
    (cache.blocks / "notes.bytes").write_bytes(b"x" * 100)
    for number in range(6):
        cache.opened(Counted(str(number))).read(0, len(CONTENT))
        cache.opened(first := Counted("0")).read(0, len(CONTENT))
        assert first.num_read == 0 and used_bytes(cache) <= cache.most_bytes
        time.sleep(0.01)  # the clock of the files
    cache.opened(gone := Counted("1")).read(0, len(CONTENT))
    assert gone.num_read == len(CONTENT)
    assert (tmp_path / "mine.bytes").exists() and (cache.blocks / "notes.bytes").exists()


def test_file_larger_than_the_bound_is_read_all_the_same(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2 * BLOCK_BYTES)
    cache.blocks.mkdir()
    assert np.array_equal(cache.opened(Counted()).read(0, len(CONTENT)), CONTENT)
    assert used_bytes(cache) <= 2 * BLOCK_BYTES


@pytest.mark.process
def test_killed_readers_leave_a_cache_that_is_right(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 4 * BLOCK_BYTES)  # too small, so that files also come and go
    cache.blocks.mkdir()
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(cache.most_bytes)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        for _ in range(5):
            read_all(cache.opened(Counted()))
        assert all(child.poll() is None for child in children)
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
    for _ in range(3):
        read_all(cache.opened(Counted()))
    assert used_bytes(cache) <= cache.most_bytes


@pytest.mark.process
def test_full_disk_is_said_once_and_reading_goes_on(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES, BLOCK_BYTES))

    (tmp_path / BLOCKS).mkdir()
    command = [sys.executable, "-c", CHILD.replace("while True", "for _ in range(3)"), str(tmp_path), "1000000000"]
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert ended.returncode == 0
    assert ended.stderr.count("\n") == 1 and "takes no more (File too large); reading goes on" in ended.stderr


def test_settings_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_in_use() is None
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "new" / "cache"))
    found = cache_in_use()
    assert found is not None and found.blocks.is_dir() and found.most_bytes == 10**11
    for wrong in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv(disk_cache.GIGABYTES, wrong)
        with pytest.raises(ConfigError, match=f"'{wrong}' GB; accepted: a number above 0"):
            cache_in_use()
    monkeypatch.setenv(disk_cache.GIGABYTES, "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="cannot be made"):
        cache_in_use()


def test_flags_go_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in disk_cache.SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "1")  # so that it is restored
    with pytest.raises(ConfigError, match="name its folder by --cache"), monkeypatch.context() as patch:
        patch.delenv(disk_cache.FOLDER)
        use_cache(None, 3.0)
    use_cache(tmp_path / "cache", 0.5)
    assert cache_in_use() == DiskCache(tmp_path / "cache", 5 * 10**8)


class _Counting(servers.Ranges):
    """A web server that counts the bytes of shards."""

    num_bytes = 0

    def do_GET(self) -> None:
        if asked := self.headers["Range"]:
            start, stop = map(int, asked.removeprefix("bytes=").split("-"))
            type(self).num_bytes += stop + 1 - start
        super().do_GET()


@pytest.fixture
def counting(local: LocalFolder) -> Iterator[str]:
    """The small store behind a web server that counts."""
    _Counting.num_bytes = 0
    handler = functools.partial(_Counting, directory=str(local.path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "http://{}:{}".format(*server.server_address[:2])
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_store_is_fetched_once_by_all_that_read_it(
    counting: str, local: LocalFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole() -> list[torch.Tensor]:
        store = FeatureStore(counting)
        return [tensor for index in range(len(store)) for tensor in store.sample(index).visual.values()]

    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path))
    here = FeatureStore(local.path)
    expected = [tensor for index in range(len(here)) for tensor in here.sample(index).visual.values()]
    for epoch in range(3):
        found = whole()
        assert all(map(torch.equal, found, expected))
        if epoch == 0:
            cold = _Counting.num_bytes
            assert 0 < cold <= sum(os.path.getsize(local.path / name) for name in local.names())
    assert _Counting.num_bytes == cold


@pytest.mark.long
def test_row_that_arrived_damaged_is_refused_and_fetched_again(
    counting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path))
    read = disk_cache.CachedFile._fill

    def damaged(self: CachedFile, first: int, last: int, out: UInt8[np.ndarray, " b"]) -> None:
        read(self, first, last, out)
        out[70] ^= 1  # in the first row of a shard

    store = FeatureStore(counting)
    path = store.audio_path
    with monkeypatch.context() as patch:
        patch.setattr(CachedFile, "_fill", damaged)
        with pytest.raises(StoreError, match="its checksum"):
            for row in range(5):
                FeatureStore(counting).read(path, row)
    before = _Counting.num_bytes
    store.read(path, 0)
    assert _Counting.num_bytes > before


def test_verify_looks_at_the_server(counting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path))
    assert isinstance(FeatureStore(counting).folder.open("zarr.json"), CachedFile)
    assert not isinstance(open_folder(counting).open("zarr.json"), CachedFile)
