"""A folder of results always matches its seal, even if its writer is killed; the same command completes it."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.predict.outputs import SEAL, _names_of
from refavs.errors import ConfigError
from refavs.files import staged as module
from refavs.files.staged import BEFORE, STAGING, is_half_written, staged

FILES = ("0.png", "1.png", "masks.jsonl", "overlay.mp4")
REQUEST = {"request": {"overlays": True}}
FORK = multiprocessing.get_context("fork")


def write(out: Path, text: str, num_folders: int, pause: Callable[[int], None] = lambda place: None) -> None:
    """A prediction whose files all hold `text`."""
    with staged(out, SEAL, _names_of) as folder:
        for number in range(1, num_folders + 1):
            (folder / str(number)).mkdir()
            for name in FILES:
                (folder / str(number) / name).write_text(text)
            pause(number)
        told = [{"folder": str(number), "areas_px": [0, 0]} for number in range(1, num_folders + 1)]
        (folder / SEAL).write_text(json.dumps({"text": text, "predictions": told, **REQUEST}))


def texts_of(out: Path) -> dict[str, str]:
    """What each file says; the seal the text alone."""
    found = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
    return {name: json.loads(text)["text"] if name == SEAL else text for name, text in found.items()}


def killed(target: Callable[[], None], ready: Path) -> None:
    """Runs `target` in a process and kills it once it has made the file `ready`."""
    process = FORK.Process(target=target)
    process.start()
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder with a prediction and a file of its user's."""
    write(tmp_path / "out", "A", 3)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    yield tmp_path / "out"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def names(*folders: int) -> set[str]:
    return {SEAL, "notes.txt"} | {f"{n}/{name}" for n in folders for name in FILES}


@pytest.mark.process
def test_kill_while_files_are_written_leaves_the_ones_before(own: Path, tmp_path: Path) -> None:
    def stop(place: int) -> None:
        (tmp_path / "ready").touch()
        time.sleep(60)

    killed(lambda: write(own, "B", 2, stop), tmp_path / "ready")
    assert is_half_written(own)
    before = {name: text for name, text in texts_of(own).items() if not name.startswith(STAGING)}
    assert set(before) == names(1, 2, 3) and set(before.values()) == {"A", "mine"}
    write(own, "B", 2)
    assert set(texts_of(own)) == names(1, 2) and set(texts_of(own).values()) == {"B", "mine"}


@pytest.mark.process
@pytest.mark.parametrize("moves", range(8))
def test_kill_while_files_take_their_places_leaves_no_seal_of_others(own: Path, tmp_path: Path, moves: int) -> None:
    def stopping() -> None:
        replace, done = os.replace, 0

        def counted(old: Path, new: Path) -> None:
            nonlocal done
            if done == moves:
                (tmp_path / "ready").touch()
                time.sleep(60)
            done += 1
            replace(old, new)

        module.os.replace = counted  # type: ignore[assignment]  # in a process of its own
        write(own, "B", 2)

    killed(stopping, tmp_path / "ready")
    found = {name: text for name, text in texts_of(own).items() if not name.startswith(STAGING)}
    assert (SEAL in found) == (moves == 0), "a seal stands for files that are all its own"
    assert is_half_written(own)
    write(own, "C", 1)
    assert set(texts_of(own)) == names(1) and set(texts_of(own).values()) == {"C", "mine"}


@pytest.mark.process
def test_first_writer_that_was_killed_is_finished(tmp_path: Path) -> None:
    def stop(place: int) -> None:
        (tmp_path / "ready").touch()
        time.sleep(60)

    killed(lambda: write(tmp_path / "out", "A", 1, stop), tmp_path / "ready")
    assert is_half_written(tmp_path / "out")
    write(tmp_path / "out", "A", 1)
    assert set(texts_of(tmp_path / "out").values()) == {"A"} and not is_half_written(tmp_path / "out")


def test_error_leaves_what_was_there(own: Path, tmp_path: Path) -> None:
    def full(place: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(own, "B", 2, full)
    assert set(texts_of(own)) == names(1, 2, 3) and set(texts_of(own).values()) == {"A", "mine"}
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "new", "B", 2, full)
    assert not (tmp_path / "new").exists()


def test_two_writers_do_not_meet(own: Path) -> None:
    def second(place: int) -> None:
        with pytest.raises(ConfigError, match="another command is writing into"):
            write(own, "C", 1)

    write(own, "B", 3, second)
    assert set(texts_of(own).values()) == {"B", "mine"}


def test_seal_of_a_stranger_removes_nothing_outside_of_the_folder(own: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_text("mine")
    (own / "9").symlink_to(tmp_path / "elsewhere")
    told = [{"folder": place, "areas_px": [0]} for place in ("..", "../elsewhere", str(tmp_path), "9")]
    (own / SEAL).write_text(json.dumps({"predictions": told[:3], **REQUEST}))
    write(own, "B", 3)
    (own / SEAL).write_text(json.dumps({"predictions": told[3:], **REQUEST}))
    with pytest.raises(ConfigError, match="is a link, and results are not written through links"):
        write(own, "C", 3)
    assert (tmp_path / "0.png").exists() and (tmp_path / "elsewhere" / "0.png").exists()
    (own / SEAL).write_text("[[[")
    write(own, "D", 3)


def test_staging_that_is_a_link_is_refused(own: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / BEFORE).write_text("mine")
    (own / STAGING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not a folder that refavs made"):
        write(own, "B", 1)
    assert (tmp_path / "elsewhere" / BEFORE).exists() and not is_half_written(own)
