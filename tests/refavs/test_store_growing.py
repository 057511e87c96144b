"""A store that is added to stays readable and whole at every step of its writer, wherever a reader's looks fall."""

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extract.store_cli import main
from refavs.errors import StoreError
from refavs.store import FeatureStore, StoreWriter
from refavs.store import verify as checks
from refavs.store.backends.base import LocalFolder
from refavs.store.lease import Lease
from refavs.store.verify import verify
from tests.refavs import small_store as small

OLD, NEW = small.CLIPS[:3], small.CLIPS
CHANGES = ("write", "create", "remove", "publish")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of some clips, with two columns that the next table lacks."""
    root = tmp_path_factory.mktemp("built") / "s"
    writer = small.write_store(root, OLD)
    writer.write_expressions(small.expressions(writer, OLD).assign(note="old", count=1))
    writer.finalise()
    return root


def grow(root: Path) -> None:
    """Adds clips, and expressions about them."""
    small.write_store(root, NEW)


def grow_stream(root: Path) -> None:
    """Adds a level of the encoder."""
    small.write_store(root, OLD, streams=small.STREAMS | {small.BACKBONE_STREAM: small.LEVEL})
    reword(root)


def drop_stream(root: Path) -> None:
    """Removes a stream that readers do not read."""
    writer = small.open_writer(root)
    writer.drop(small.VISUAL)
    writer.finalise()


def reword(root: Path) -> None:
    """Replaces the expressions and nothing else."""
    writer = small.open_writer(root)
    writer.write_expressions(small.expressions(writer, OLD).assign(grade="a longer word", note=7))
    writer.finalise()


JOBS = [grow, grow_stream, reword]


def look(root: Path) -> FeatureStore:
    """What a reader does; every expression is one of the old table or of a new one, whole."""
    store = FeatureStore(root)
    clips = sorted(set(store.expressions["clip_id"]))
    assert clips in (list(OLD), list(NEW)) and len(store) == 2 * len(clips)
    assert len(set(store.expressions["grade"])) == 1 and store.sample(0, ["pixel_decoder"]).uid == "a_0"
    return store


@pytest.mark.long
@pytest.mark.parametrize("job", JOBS)
def test_reader_and_verify_are_right_at_every_step(
    root: Path, job: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for name in CHANGES:
        call = getattr(LocalFolder, name)

        def step(folder: LocalFolder, *arguments: Any, call: Any = call, name: str = name) -> Any:
            done = call(folder, *arguments)
            steps.append(f"{name} {arguments[0]}")
            if len(steps) % 2:
                look(root)
            else:
                assert verify(root).damage == (), steps
            return done

        monkeypatch.setattr(LocalFolder, name, step)
    job(root)
    assert len(steps) > 10 and look(root).finished


def test_expressions_on_a_server_are_readable_at_every_step(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refavs.store.backends.object_store import RemoteFolder

    location, local = "memory://growing", LocalFolder(built)
    for name in local.names():
        RemoteFolder(location).write(name, local.read(name))
    grades = []
    for name in ("write", "remove"):
        call = getattr(RemoteFolder, name)

        def step(folder: RemoteFolder, *arguments: Any, call: Any = call) -> None:
            call(folder, *arguments)
            grades.append(FeatureStore(location).expressions["grade"][0])

        monkeypatch.setattr(RemoteFolder, name, step)
    writer = StoreWriter.attach(location)
    writer.write_expressions(small.expressions(writer, OLD).assign(grade="a longer word"))
    assert sorted(set(grades)) == ["a longer word", "easy"] and grades == sorted(grades, reverse=True)
    assert "expressions/note/zarr.json" not in RemoteFolder(location).names()


@pytest.mark.long
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("reader", [look, verify])
def test_writer_that_finishes_between_two_reads_is_not_damage(
    built: Path, tmp_path: Path, job: Callable[[Path], None], reader: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read, place = LocalFolder.read, 0
    for place in range(0, 300, 14):
        root, count = Path(shutil.copytree(built, tmp_path / f"s{place}")), 0

        def between(folder: LocalFolder, name: str, place: int = place, root: Path = root) -> bytes:
            nonlocal count
            data = read(folder, name)
            if place == count:
                monkeypatch.setattr(LocalFolder, "read", read)
                job(root)
            count += 1
            return data

        monkeypatch.setattr(LocalFolder, "read", between)
        found = reader(root)
        monkeypatch.setattr(LocalFolder, "read", read)
        assert getattr(found, "damage", ()) == () and getattr(found, "uncommitted", ()) == (), place
        if count <= place:  # the reader had done all its reading before
            break
    assert 10 < place < 290


def test_stream_that_is_dropped_goes_at_once_for_who_opens_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(root)
    kept = store.read(small.MAPS, 0).clone()
    remove, seen = LocalFolder.remove_all, []

    def looked(folder: LocalFolder, under: str) -> None:
        remove(folder, under)
        seen.append(FeatureStore(root).streams)
        assert not verify(root).damage

    monkeypatch.setattr(LocalFolder, "remove_all", looked)
    drop_stream(root)
    assert seen and all(streams == [small.SOUND, small.TEXT] for streams in seen)
    assert torch.equal(store.read(small.MAPS, 0), kept), "who had mapped it reads on"


@pytest.mark.long
def test_looks_beside_a_writer_that_never_rests(root: Path) -> None:
    stop, rounds, switch = threading.Event(), 0, sys.getswitchinterval()

    def write() -> None:
        nonlocal rounds
        while not stop.is_set():
            writer = small.open_writer(root)
            new = f"z{rounds:04d}"
            small.add_clips(writer, [*OLD, new])
            writer.write_expressions(small.expressions(writer, OLD).assign(grade=f"{rounds % 7}" * (1 + rounds % 5)))
            writer.finalise()
            rounds += 1

    thread = threading.Thread(target=write, daemon=True)
    sys.setswitchinterval(1e-4)
    try:
        thread.start()
        for _ in range(25):
            look(root)
        for _ in range(8):
            assert verify(root).damage == ()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(switch)
    assert rounds > 1


def test_what_a_writer_changes_in_every_look_is_no_damage_and_a_flipped_bit_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rounds = checks._read_records, 0

    def beside(*arguments: Any) -> Any:
        nonlocal rounds
        found, rounds = read(*arguments), rounds + 1
        writer = small.open_writer(root)
        writer.write_expressions(small.expressions(writer, OLD).assign(grade=f"{rounds}"))
        if rounds % 2:
            writer.finalise()
        return found

    monkeypatch.setattr(checks, "_MOST_LOOKS", 4)
    monkeypatch.setattr(checks, "_read_records", beside)
    assert verify(root).damage == () and rounds
    shard = root / small.MAPS / "c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert len(verify(root).damage) == 1


def test_files_of_live_and_dead_writers_are_distinguished(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = small.open_writer(root)
    (plan,) = writer.plan(small.VISUAL, [["x"]])
    assert plan is not None
    with Lease(LocalFolder(root), "refavs-extract"), writer.shard(plan) as shard:
        shard.write("x", small.row_of("x", small.STREAMS[small.VISUAL].arrays))
        monkeypatch.setattr(os, "getpid", lambda: 1)  # verify as another process
        assert main(["verify", str(root)]) == 0
        monkeypatch.undo()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("uncommitted")]
        assert len(lines) == 2
        assert all("(of refavs-extract (process " in line and "is at work; readers do" in line for line in lines)
    (root / f"{small.MAPS}/c.0.0.0.0.0.7-0badcafe.partial").touch()
    assert main(["verify", str(root)]) == 0
    assert "partial (left by an interrupted run; readers do" in capsys.readouterr().out


def test_shard_that_is_committed_while_verify_looks_is_not_left_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = LocalFolder.names

    def late(folder: LocalFolder, under: str = "") -> list[str]:
        found = names(folder, under)
        if not under:
            monkeypatch.setattr(LocalFolder, "names", names)
            small.write_rows(StoreWriter.attach(root), small.VISUAL, ["x"])
            found = names(folder, under)
        return found

    monkeypatch.setattr(LocalFolder, "names", late)
    verdict = verify(root)
    assert (verdict.damage, verdict.uncommitted) == ((), ())


def test_real_damage_beside_a_writer_is_found(root: Path) -> None:
    (root / small.MAPS / "c.0.0.0.0.0").write_bytes(b"x")
    small.write_rows(small.open_writer(root), small.VISUAL, ["x"])
    (damage,) = verify(root).damage
    assert damage.keys == ("a", "b")
    (root / "expressions/uid/c.0.0").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"uid/c\.0\.0 is damaged: it does not match"):
        FeatureStore(root)
    assert {damage.where for damage in verify(root).damage} == {f"{small.MAPS}/c.0.0.0.0.0", "commits/expressions.json"}
