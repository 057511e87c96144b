"""Single steps of a map are read and verified without the others, also from files without their checksums."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from refavs.data.maps import Maps
from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore
from refavs.store.backends.base import MappedFile
from refavs.store.verify import verify
from tests.refavs import small_store as small

ROWS, STEPS = [4, 0, 3], [0, 2]
STEP_BYTES = 4 * 5 * 6 * 2


def read(store: FeatureStore) -> torch.Tensor:
    """Two steps of three rows."""
    return store.read_rows({small.MAPS: ROWS}, lambda shape, dtype: torch.zeros(shape, dtype=dtype),
                           {small.MAPS: STEPS})[small.MAPS]  # fmt: skip


def damaged(root: Path, row: int, step: int) -> None:
    """Flips a bit of one step of a row, by its value in the file."""
    store = FeatureStore(root, verify="never")
    value = store.read(small.MAPS, row)[step].numpy().tobytes()
    shard = root / small.MAPS / f"c.{row // 2}.0.0.0.0"
    data = shard.read_bytes()
    place = data.index(value)
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose files have no checksums of steps, as those of earlier versions."""
    root = tmp_path_factory.mktemp("older") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArraySpec, "num_parts", 1)
        small.write_store(root)
    return root


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No row is in memory; the lengths of what is read from the disk."""
    found: list[int] = []
    copy = MappedFile.copy

    def noted(file: MappedFile, start: int, out: np.ndarray) -> None:
        found.append(len(out))
        copy(file, start, out)

    monkeypatch.setattr("refavs.store.format.shard.SMALL_BYTES", 1)
    monkeypatch.setattr(MappedFile, "is_cold", lambda file, start, stop: True)
    monkeypatch.setattr(MappedFile, "copy", noted)
    return found


@pytest.mark.parametrize("policy", ["first", "always", "never"])
@pytest.mark.parametrize("kind", ["built", "older"])
def test_chosen_steps_are_those_of_the_whole_row(kind: str, policy: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    store, plain = FeatureStore(root, verify=policy), FeatureStore(root)
    for _ in range(2):
        assert torch.equal(read(store), torch.stack([plain.read(small.MAPS, row)[STEPS] for row in ROWS]))
    assert verify(root).damage == ()


def test_only_the_bytes_of_the_chosen_steps_are_read(built: Path, copied: list[int]) -> None:
    read(FeatureStore(built))
    assert copied == [STEP_BYTES] * len(ROWS) * len(STEPS)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("policy", ["first", "always"])
def test_damage_is_noticed_in_the_steps_that_are_read(
    built: Path, tmp_path: Path, policy: str, cold: bool, request: pytest.FixtureRequest
) -> None:
    if cold:
        request.getfixturevalue("copied")
    root = Path(shutil.copytree(built, tmp_path / "s"))
    damaged(root, 3, 1)
    read(FeatureStore(root, verify=policy))
    damaged(root, 3, 2)
    with pytest.raises(StoreError, match=r"of 'frames of d' \(row 3 .* the checksum of its step 2 is"):
        read(FeatureStore(root, verify=policy))
    read(FeatureStore(root, verify="never"))


def test_row_without_checksums_of_steps_is_verified_whole(older: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(older, tmp_path / "s"))
    damaged(root, 3, 1)
    with pytest.raises(StoreError, match=r"of 'frames of d' \(row 3 .* its checksum is"):
        read(FeatureStore(root))


def test_damaged_checksums_of_steps_leave_the_row_readable(built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    plain = read(FeatureStore(built))
    shard = root / small.MAPS / "c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[3 * STEP_BYTES + 4 + 5] ^= 1  # after the first row and its own checksum
    shard.write_bytes(data)
    assert torch.equal(read(FeatureStore(root)), plain)
    (damage,) = verify(root).damage
    assert damage.problem == "bytes between its rows have changed; every row is intact"


@pytest.mark.parametrize("kind", ["built", "older"])
def test_steps_of_a_remote_store_are_requested_alone(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refavs.store.backends import object_store

    location = f"memory://steps-{kind}/s"
    with pytest.MonkeyPatch.context() as patch:
        if kind == "older":
            patch.setattr(ArraySpec, "num_parts", 1)
        small.write_store(location)
    store = FeatureStore(location)
    expected = torch.stack([store.read(small.MAPS, row)[STEPS] for row in ROWS])
    sizes: list[int] = []
    counting(monkeypatch, object_store, sizes)
    for _ in range(2):
        assert torch.equal(read(store), expected)
    assert (max(sizes) < 3 * STEP_BYTES) == (kind == "built")


def counting(monkeypatch: pytest.MonkeyPatch, module: object, sizes: list[int]) -> None:
    """Notes the length of each request to a remote file."""
    kind = next(value for name, value in vars(module).items() if name == "RemoteFile")
    reads: Callable[..., np.ndarray] = kind.read

    def noted(file: object, start: int, stop: int) -> np.ndarray:
        sizes.append(stop - start)
        return reads(file, start, stop)

    monkeypatch.setattr(kind, "read", noted)


def test_map_read_in_part_gives_only_what_was_read() -> None:
    whole = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3, 1, 1)
    maps = Maps({"m": whole[:, [1, 3]], "whole": whole}, {}, {"m": Maps.places_of([1, 3], 5)})
    for index in ([1], [3], [1, 3]):
        found = maps.part(["m", "whole", "another"], torch.tensor(index))
        assert found.keys() == {"m", "whole"} and all(torch.equal(found[name], whole[:, index]) for name in found)
    before = maps.part(["m", "whole"], slice(4))
    assert torch.equal(before["whole"], whole[:, :4])
    assert torch.equal(before.part(["m"], torch.tensor([3]))["m"], whole[:, [3]])
    with pytest.raises(IndexError):
        maps.part(["m"], torch.tensor([2]))
    assert maps["m"].shape[1] == 2
