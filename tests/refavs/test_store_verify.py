"""`verify` finds every flipped bit and says what is lost with it; the commands print it in lines a person can use."""

import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.store_cli import main
from refavs.errors import StoreError
from refavs.store import verify as verify_module
from refavs.store.backends.base import Folder, LocalFolder
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import StoreSchema
from refavs.store.format.shard import ShardReader
from refavs.store.reader import FeatureStore
from refavs.store.verify import Damage, verify
from refavs.terminal.printing import readable_bytes
from tests.refavs import small_store as small

SHARD = f"{small.MAPS}/c.0.0.0.0.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store that no test changes."""
    root = tmp_path_factory.mktemp("built") / "s"
    small.write_store(root, failing=["d"])
    return root


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def test_whole_store_has_no_damage(built: Path) -> None:
    told: list[str] = []
    verdict = verify(built, told.append)
    assert verdict.damage == () and verdict.uncommitted == () and verdict.num_rows == 5 + 5 + 3 + 4
    assert told == [f"commits/{name}.json" for name in (
        "audio/vggish/00000", "audio/vggish/00001", "audio/vggish/00002", "objects/00000", "objects/00001",
        "text/roberta/00000", *(f"visual/swin/pixel_decoder/0000{index}" for index in range(3)),
    )]  # fmt: skip
    arrays = list(FeatureStore(built).specs)
    assert verdict.num_bytes == sum(path.stat().st_size for array in arrays for path in (built / array).glob("c.*"))


@pytest.mark.long
def test_every_flipped_bit_is_found(root: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = list(FeatureStore(root).specs)
    files = [path for array in arrays for path in (root / array).glob("c.*")] + list((root / "commits").rglob("*.json"))
    for path in files:
        whole = path.read_bytes()
        for byte in {0, len(whole) - 1, *(int(byte) for byte in rng.integers(0, len(whole), 1))}:
            flip(path, byte, int(rng.integers(8)))
            where = {damage.where for damage in verify(root).damage}
            assert any(path.relative_to(root).as_posix().startswith(name) for name in where), (path.name, byte, where)
            path.write_bytes(whole)
    assert verify(root).damage == ()


def test_damage_names_the_rows_it_reaches(root: Path) -> None:
    flip(root / SHARD, 5)
    (damage,) = verify(root).damage
    assert (damage.where, damage.keys) == (SHARD, ("a",)) and "its checksum is" in damage.problem
    (root / small.AUDIO / "c.0.0.0").unlink()
    assert {(d.where, d.keys) for d in verify(root).damage} == {(SHARD, ("a",)), (f"{small.AUDIO}/c.0.0.0", ("a", "b"))}


def test_change_between_rows_is_reported_as_such(root: Path) -> None:
    flip(root / SHARD, 740)
    (damage,) = verify(root).damage
    assert damage.keys == () and "every row is intact" in damage.problem


def test_wrong_description_and_lost_record_are_found(root: Path) -> None:
    path = root / small.AUDIO / "zarr.json"
    path.write_text(path.read_text().replace("float32", "float16"))
    (damage,) = verify(root).damage
    assert damage.where == f"{small.AUDIO}/zarr.json" and "does not match the commit records" in damage.problem
    path.unlink()
    small.write_store(root, failing=["d"])
    assert verify(root).damage == ()
    lost = [f"commits/{table}/00000.json" for table in ("objects", small.TEXT, small.VISUAL)]
    for file in lost:
        (root / file).unlink()
    verdict = verify(root)
    assert [(damage.where, damage.keys[:3]) for damage in verdict.damage] == [
        (lost[0], ("a/1", "b/1", "c/1")), (lost[1], small.TEXTS), (lost[2], ("a", "b")),
        ("objects", ("a_0", "a_1", "b_0")),
    ]  # fmt: skip
    assert SHARD in verdict.uncommitted


def test_store_that_is_not_the_one_that_was_finished_is_found(root: Path) -> None:
    path = root / "zarr.json"
    whole = path.read_text()
    facts = json.loads(whole)
    facts["attributes"] |= {"seconds": 6, "fps": 0.5}
    path.write_text(json.dumps(facts))
    (damage,) = verify(root).damage
    assert damage.where == "zarr.json" and "when the store was finished, in commits/listing" in damage.problem
    path.write_text(whole)
    assert verify(root).damage == ()


def test_store_that_grows_has_no_damage_before_it_is_finished_again(root: Path) -> None:
    writer = small.open_writer(root)
    small.add_clips(writer, ["f"])
    assert verify(root).damage == () and not FeatureStore(root).finished
    writer.finalise()
    assert verify(root).damage == () and FeatureStore(root).finished


def test_verify_command_lists_damage_and_exits_with_3(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(root)]) == 0
    assert "17 rows" in (out := capsys.readouterr().out) and "0 damaged" in out
    flip(root / SHARD, 5)
    (root / small.MAPS / "c.9.0.0.0.0").write_bytes(b"")
    assert main(["verify", str(root)]) == 3
    out = capsys.readouterr().out
    assert f"damaged: {SHARD} [a]: its checksum" in out and "1 damaged" in out
    assert f"uncommitted: {small.MAPS}/c.9.0.0.0.0" in out and "refavs-store repair" in out


def test_info_command_shows_the_store(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["info", str(root)]) == 0
    out = capsys.readouterr().out
    for text in (
        "source       small", "3 seconds, 1 frames per second", "11 x 11 px", f"{small.VISUAL}: swin@",
        small.MAPS, "3x4x5x6", "float16",
        "clips        1 silent", "clips        2 repeated_from_s", "failed       d: made to fail",
        "expressions  8 (test_n 2, test_s 2, train 2, val 2)",
    ):  # fmt: skip
        assert text in out
    assert "random weights" not in out and "did not finish" not in out
    (root / "commits/objects/00000.json").rename(root / "gone.json")
    assert main(["info", str(root)]) == 2
    assert "which is missing" in capsys.readouterr().err


def test_info_command_counts_what_is_true_of_every_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "facts_of", lambda clip: {"silent": True, "repeated_from_s": 6})
    small.write_store(tmp_path / "s")
    assert main(["info", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "clips        5 silent" in out and "clips        5 repeated_from_s" in out


def test_info_of_an_unfinished_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = replace(small.LEVEL, fingerprint={"name": "swin", "weights": "random:3"})
    small.write_rows(small.open_writer(tmp_path / "s", streams={small.VISUAL: level}), small.VISUAL, ["a"])
    assert main(["info", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "its extraction did not finish" in out and "expressions  not written yet" in out
    assert "random weights: these features only show" in out


@pytest.mark.parametrize("command", ["info", "verify"])
def test_missing_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("refavs-store: no feature store at ") and "refavs-extract wrote" in captured.err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0 and "refavs-store verify features/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (44_200_000, "44.2 MB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert readable_bytes(size) == text


@pytest.mark.parametrize("error", [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EMFILE, "Too many open files"),
])  # fmt: skip
@pytest.mark.parametrize(
    "out", ["commits/audio/vggish/00001.json", SHARD, "row", "clips/zarr.json", "expressions/uid/c.0.0"]
)
def test_inaccessible_files_are_not_damage(
    built: Path, monkeypatch: pytest.MonkeyPatch, out: str, error: OSError
) -> None:
    read, opened = LocalFolder.read, LocalFolder.open

    def refuse(name: str) -> None:
        if name == out:
            raise error

    monkeypatch.setattr(LocalFolder, "read", lambda self, name, *most: refuse(name) or read(self, name, *most))
    monkeypatch.setattr(LocalFolder, "open", lambda self, name: refuse(name) or opened(self, name))
    if out == "row":
        cut = StoreError("it cannot be read")
        cut.__cause__ = error
        monkeypatch.setattr(ShardReader, "check", lambda *_: (_ for _ in ()).throw(cut))
    with pytest.raises((StoreError, OSError)) as caught:
        verify(built)
    assert isinstance(caught.value, type(error)) or "nothing need be wrong with it" in str(caught.value)


def test_folder_that_cannot_be_listed_is_not_empty(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("commits"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        verify(built)
    with pytest.raises(OSError, match="Input/output error"):
        FeatureStore(built)


def test_files_that_no_record_names_are_uncommitted(root: Path) -> None:
    maps = f"{small.MAPS}/c.7.0.0.0.0"
    strays = [maps, "commits/audio/vggish/00007.json.1-0a0a0a0a.partial", "zarr.json.1-0b0b0b0b.partial"]
    for stray in strays:
        (root / stray).write_bytes(b"x")
    verdict = verify(root)
    assert verdict.damage == () and sorted(verdict.uncommitted) == sorted(strays)


def test_report_is_in_the_records_order_whichever_thread_is_done_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (SHARD, "objects/mask/c.0.0.0.0", f"{small.FEATURES}/c.0.0.0"):
        flip(root / file, 5)
    before, told_first = verify(root), "commits/audio/vggish/00000.json"
    slow = verify_module._shard_damage

    def late(folder: Folder, schema: StoreSchema, record: CommitRecord, names: dict) -> list[Damage]:
        time.sleep(0.3 if record.file == told_first else 0)
        return list(slow(folder, schema, record, names))

    monkeypatch.setattr(verify_module, "_shard_damage", late)
    told: list[str] = []
    after = verify(root, told.append)
    assert after == before and {damage.where for damage in after.damage} >= {SHARD}
    assert told[0] == told_first and told == sorted(told)
