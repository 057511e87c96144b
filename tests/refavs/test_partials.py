"""Commands that write a file or a folder: killed at any point, the same command ends it and leaves nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from extract.store_cli import main
from refavs.errors import DatasetError, StoreError
from refavs.files.partials import give_name, lock_partial, partial_path, remove_left
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.hdf5.exchange import (
    _fingerprint_in,  # noqa: F401 (the killer below uses it)
    export,
    import_,
)
from refavs.store.lease import Lease
from refavs.synthetic import write as synthetic
from refavs.synthetic.write import write_benchmark
from tests.refavs import small_store as small

REPOSITORY = Path(__file__).parents[2]
NAMES = ["x" * 251 + ".h5", "é" * 124 + ".h5", "y" * 255]


def synth(out: Path, seed: int = 0) -> object:
    return write_benchmark(out, 1, size=48, videos=False, seed=seed)


def export_job(folder: Path) -> None:
    export(folder.parent / "s", folder / "s.h5")


def import_job(folder: Path) -> None:
    import_(folder.parent / "s.h5", folder / "back")


def synth_job(folder: Path) -> None:
    synth(folder / "out")


def reword_job(folder: Path) -> None:
    """Replaces one table of expressions by another."""
    if not (folder / "s/commits/expressions.json").exists():
        small.write_store(folder / "s", small.CLIPS[:2])
    writer = small.open_writer(folder / "s")
    frame = small.expressions(writer)
    writer.write_expressions(frame.assign(dimension="a longer word", fid=3.5).drop(columns="grade").assign(grade=1))
    writer.finalise()


JOBS: list[Callable[[Path], None]] = [export_job, import_job, synth_job, reword_job]

# Runs each job in a process that is killed before or after a call that changes a file, then lets it run again.
KILLER = """
import os, shutil, signal, sys
from collections import Counter
from pathlib import Path
import tests.refavs.test_partials as tests
os.fsync = lambda file: None
root = Path(sys.argv[1])
CALLS = {name: getattr(os, name) for name in ("open", "mkdir", "link", "rename", "unlink", "pwrite")}

def run(job, folder, death=None):
    counts = Counter()
    def wrap(name):
        def call(*arguments, **options):
            counts[name] += 1
            if death == (name, counts[name], "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = CALLS[name](*arguments, **options)
            if death == (name, counts[name], "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call
    for name in CALLS:
        setattr(os, name, wrap(name))
    job(folder)
    for name, call in CALLS.items():
        setattr(os, name, call)
    return counts

def files(folder):
    found = tests.small.files_of(folder) | {str(path.relative_to(folder)): "" for path in folder.rglob("*/")}
    prints = {name: tests._fingerprint_in(folder / name) for name in found if name.endswith(".h5")}
    return {name: data for name, data in (found | prints).items() if Path(name).name not in (".lock", "lease.json")}

tests.small.write_store(root / "s")
tests.export(root / "s", root / "s.h5")
for job in tests.JOBS:
    (root / "undisturbed").mkdir()
    counts = run(job, root / "undisturbed")
    expected = files(root / "undisturbed")
    num = int(sys.argv[2])
    points = [(name, 1 + (2 * place + 1) * counts[name] // (2 * num), side) for name in CALLS if counts[name]
              for place in range(num) for side in ("before", "after")]
    died = 0
    for point in [*dict.fromkeys(points)][:: 1 if num > 1 else 2]:  # of a small sample one side only
        (root / "killed").mkdir()
        child = os.fork()
        if not child:
            run(job, root / "killed", point)
            os._exit(0)
        died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        halfway = files(root / "killed")
        if "s/commits/expressions.json" in halfway:
            tests.FeatureStore(root / "killed/s")
        job(root / "killed")
        found = files(root / "killed")
        differ = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
        assert not differ, (job.__name__, point, differ, sorted(halfway))
        shutil.rmtree(root / "killed")
    shutil.rmtree(root / "undisturbed")
    print(job.__name__, died)
"""


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("num_points", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_killed_command_is_ended_by_the_same_command(tmp_path: Path, num_points: int) -> None:
    """Killed at so many calls of each kind."""
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(num_points)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    kills = {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines() if "_job" in line)}
    assert len(kills) == len(JOBS) and min(kills.values()) >= (2 if num_points == 1 else 4), kills


def test_link_in_the_place_of_a_temporary_file_is_not_followed(built: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("s.h5.partial", "s.h5.12-0badcafe.partial", ".out.partial", ".out.12-0badcafe.partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    export(built, tmp_path / "s.h5")
    synth(tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine" and len(list(tmp_path.glob("*.partial"))) == 4


def test_files_of_others_beside_an_output_stay(built: Path, tmp_path: Path) -> None:
    names = ["s.h5.partial", "film.mkv.12-0badcafe.partial", ".out.partial", "s.h5.1-2.partial", "s.1-00000000.partial"]
    for name in names:
        (tmp_path / name).write_text("mine")
    export(built, tmp_path / "s.h5")
    synth(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "s.h5", "out"}


def test_files_of_killed_processes_are_removed_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    living, dead, folder = (partial_path(tmp_path / "s") for _ in range(3))
    living.touch()
    dead.touch()
    (folder / "deep").mkdir(parents=True)
    lock = lock_partial(living)
    assert lock is not None and lock_partial(living) is None
    assert remove_left(tmp_path / "s") and list(tmp_path.iterdir()) == [living]
    os.close(lock)
    assert not remove_left(tmp_path / "s") and list(tmp_path.iterdir()) == []


def test_name_that_is_taken_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, out = tmp_path / "p", tmp_path / "out"
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no hard links here")))
        partial.write_text("new")
        out.write_text("mine")
        with pytest.raises(FileExistsError):
            give_name(partial, out)
        assert out.read_text() == "mine"
        out.unlink()
        give_name(partial, out)
        assert out.read_text() == "new" and not partial.exists()


@pytest.mark.parametrize("name", NAMES)
def test_output_may_have_the_longest_name(built: Path, tmp_path: Path, name: str) -> None:
    export(built, tmp_path / "files" / name)
    synth(tmp_path / "folders" / name)
    assert [path.name for path in (*(tmp_path / "files").iterdir(), *(tmp_path / "folders").iterdir())] == [name] * 2
    import_(tmp_path / "files" / name, tmp_path / "stores" / name)
    assert FeatureStore(tmp_path / "stores" / name).finished


def test_name_that_is_too_long_is_one_line(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(built), str(tmp_path / ("x" * 256))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "File name too long" in line and list(tmp_path.iterdir()) == []


def test_export_of_an_unfinished_store_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, small.VISUAL, ["a"])
    for number in range(2):  # made, and there already
        assert main(["export", str(tmp_path / "s"), str(tmp_path / "s.h5")]) == 3, number
        assert "has only what was committed by then: the extraction of" in (err := capsys.readouterr().err)
        assert "did not finish: run the same refavs-extract command again; then export it to another file" in err
    with Lease(LocalFolder(tmp_path / "s"), "refavs-extract"):
        monkeypatch.setattr(os, "getpid", lambda: 1)  # export as another process
        assert main(["export", str(tmp_path / "s"), str(tmp_path / "t.h5")]) == 3
        monkeypatch.undo()
    assert "goes on: refavs-extract (process " in capsys.readouterr().err
    small.write_store(tmp_path / "s")
    assert main(["export", str(tmp_path / "s"), str(tmp_path / "u.h5")]) == 0


def test_two_benchmarks_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = synth(tmp_path / "alone")
    write, second = synthetic._write_medium, []

    def meanwhile(*arguments: object) -> None:
        if not second:
            second.append(None)
            second[0] = synth(tmp_path / "out")
        write(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(synthetic, "_write_medium", meanwhile)
    assert synth(tmp_path / "out") is None and second == [alone], "whoever comes second finds it complete"
    assert small.files_of(tmp_path / "out") == small.files_of(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}
    second.clear()
    with pytest.raises(DatasetError, match="holds a synthetic benchmark made with"):
        monkeypatch.setattr(synthetic, "_write_medium", lambda *a: (synth2(tmp_path / "out2"), write(*a)))
        synth(tmp_path / "out2")


def synth2(out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_write_medium", lambda root, *_: root.mkdir(exist_ok=True))
        if not out.exists():
            synth(out, seed=1)


@pytest.mark.parametrize(
    ("name", "empties"), [("metadata.csv", True), ("expressions.csv", True), ("metadata.csv", False), ("media", False)]
)
def test_benchmark_that_lost_a_file_is_not_complete(tmp_path: Path, name: str, empties: bool) -> None:
    synth(tmp_path / "out")
    path = next((tmp_path / "out" / "media").rglob("4.jpg")) if name == "media" else tmp_path / "out" / name
    path.write_bytes(b"") if empties else path.unlink()
    told = rf"holds a damaged synthetic benchmark: .*{path.name} is missing, empty or changed; move what"
    with pytest.raises(DatasetError, match=told):
        synth(tmp_path / "out")


def test_file_that_is_a_dangling_link_is_left_alone(built: Path, tmp_path: Path) -> None:
    (tmp_path / "s.h5").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"s\.h5 was created by another process|is there already"):
        export(built, tmp_path / "s.h5")
    assert not (tmp_path / "elsewhere").exists() and len(list(tmp_path.iterdir())) == 1
