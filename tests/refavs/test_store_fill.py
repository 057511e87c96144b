"""Rows that are not in memory are read from the disk in pieces, and are the same."""

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import MappedFile
from tests.refavs import small_store as small


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No row is in memory; the lengths of what is read from the disk, in pieces that fit no row."""
    pieces: list[int] = []
    copy = MappedFile.copy

    def noted(file: MappedFile, start: int, out: np.ndarray) -> None:
        pieces.append(len(out))
        copy(file, start, out)

    monkeypatch.setattr("refavs.store.format.shard.SMALL_BYTES", 1)
    monkeypatch.setattr("refavs.store.format.shard.READ_BYTES", 77)
    monkeypatch.setattr(MappedFile, "is_cold", lambda file, start, stop: True)
    monkeypatch.setattr(MappedFile, "copy", noted)
    return pieces


@pytest.mark.parametrize("policy", ["first", "always", "never"])
def test_rows_that_are_not_in_memory_are_read_in_pieces(built: Path, policy: str, cold: list[int]) -> None:
    store, plain = FeatureStore(built, verify=policy), FeatureStore(built)
    wanted = {small.MAPS: [4, 0, 3], small.AUDIO: [1, 0]}
    found = store.read_rows(wanted, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    for path, rows in wanted.items():
        assert torch.equal(found[path], torch.stack([plain.read(path, row) for row in rows]))
    assert sum(cold) == sum(tensor.nbytes for tensor in found.values()) and max(cold) == 77
    turned = store.read_rows({small.AUDIO: [1]}, lambda shape, dtype: torch.zeros(7, 3, 1).permute(2, 1, 0))
    assert torch.equal(turned[small.AUDIO][0], plain.read(small.AUDIO, 1)), "whose places no reader can fill"


@pytest.mark.parametrize("num_threads", [1, 2])
def test_large_copies_from_memory_use_as_many_threads_as_torch(
    built: Path, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refavs.store.fill.THREAD_BYTES", 1)
    store, plain, threads = FeatureStore(built), FeatureStore(built), set[int]()
    together, read = threading.Barrier(num_threads, timeout=60), store.read

    def noted(path: str, row: int, part: range | None = None) -> torch.Tensor:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            together.wait()
        return read(path, row, part)

    monkeypatch.setattr(store, "read", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        wanted = {small.MAPS: [4, 0, 3], small.AUDIO: [1, 0]}
        found = store.read_rows(wanted, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert len(threads) == num_threads
    for path, rows in wanted.items():
        assert torch.equal(found[path], torch.stack([plain.read(path, row) for row in rows]))


@pytest.mark.parametrize("policy", ["first", "always"])
def test_rows_read_in_pieces_are_verified(built: Path, tmp_path: Path, policy: str, cold: list[int]) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    shard = root / small.MAPS / "c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"of 'frames of a' .* its checksum is"):
        store = FeatureStore(root, verify=policy)
        store.read_rows({small.MAPS: [1, 0]}, lambda shape, dtype: torch.empty(shape, dtype=dtype))
    assert sum(cold) > 0


@pytest.mark.parametrize("change", ["replaced", "removed", "cut"])
def test_file_that_changed_since_it_was_mapped_is_not_read_from_the_disk(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    file = MappedFile(path)
    if change == "cut":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "preadv", lambda *args: 0)
            assert read(file) == bytes(range(50, 150))
        return
    path.unlink()
    if change == "replaced":
        path.write_bytes(bytes(200))
    assert not file.is_cold(0, 200) and read(file) == bytes(range(50, 150))


def read(file: MappedFile) -> bytes:
    """100 bytes of it."""
    out = np.zeros(100, np.uint8)
    file.copy(50, out)
    return out.tobytes()


@pytest.mark.parametrize(("code", "cold"), [(errno.EAGAIN, True), (errno.EOPNOTSUPP, True), (0, False)])
def test_file_is_cold_unless_the_system_says_that_it_is_in_memory(tmp_path: Path, code: int, cold: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(200))
    file = MappedFile(path)

    def preadv(number: int, buffers: list[bytearray], place: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if code:
            raise OSError(code, os.strerror(code))
        return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        assert file.is_cold(0, 200) is cold
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "preadv", lambda *args: raising(OSError(errno.EIO, os.strerror(errno.EIO))))
        file.is_cold(0, 200)


def raising(error: Exception) -> None:
    raise error
