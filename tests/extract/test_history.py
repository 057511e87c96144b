"""refavs-store tag, log, diff, delete and compact, and the number of clips in a shard."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from extract.cli import main as extract
from extract.store_cli import main
from refavs.store.contents import contents_of, differences
from refavs.store.fingerprints import fingerprint_of
from refavs.store.folders import open_folder
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, run_with, tiny
from tests.refavs.small_store import files_of

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, in_this_process)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=3, seed=1, size=96, videos=0)
    return root


@pytest.fixture(scope="module")
def part(bench: Path) -> Path:
    """The benchmark without the last clip of its table."""
    root = Path(shutil.copytree(bench, bench.parent / "part", symlinks=True))
    with (root / "metadata.csv").open() as file:
        header, *rows = csv.reader(file)
    last = rows[-1][1].rsplit("_", 2)[0]
    kept = [row for row in rows if row[1].rsplit("_", 2)[0] != last]
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    return root


@pytest.fixture(scope="module")
def built(bench: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        run_with(patch, in_this_process)
        arguments = tiny(bench, bench.parent / "store", "--clips-per-shard", 2)
        assert extract([str(part) for part in arguments]) == 0
    yield bench.parent / "store"


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def test_shards_have_the_clips_that_are_asked_for(built: Path, bench: Path, tmp_path: Path) -> None:
    store = FeatureStore(built)
    sizes = {name: table.rows_per_shard for name, table in store.schema.tables.items() if name.split("/")[0] != "text"}
    assert {size for name, size in sizes.items() if name != "objects"} == {2}
    assert len([record for record in store.records if record.table.startswith("visual")]) == 2
    other = tmp_path / "whole"
    assert extract([str(part) for part in tiny(bench, other)]) == 0
    assert not differences(contents_of(str(built)), contents_of(str(other)))
    assert extract([str(part) for part in tiny(bench, tmp_path / "none", "--clips-per-shard", 0)]) == 2


def test_tags_are_listed_and_compared(
    root: Path, part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert extract([str(one) for one in tiny(part, small)]) == 0
    before = files_of(small)
    assert main(["tag", str(small), "first", "--dry-run"]) == 0 and files_of(small) == before
    assert "would be tagged first" in capsys.readouterr().out
    assert main(["tag", str(small), "first", "--message", "without the last clip"]) == 0
    assert main(["tag", str(small), "first"]) == 2 and main(["tag", str(small), "../x"]) == 2
    capsys.readouterr()
    shutil.copytree(small / "tags", root / "tags")
    assert main(["log", str(root)]) == 0
    told = capsys.readouterr().out
    assert "first  " in told and "without the last clip" in told and "    clips: 1 added" in told
    assert "rows of objects: 1 added" in told
    assert main(["diff", f"{root}@first", str(root)]) == 3
    told = capsys.readouterr().out
    lost = set(FeatureStore(root).clips["id"]) - set(FeatureStore(small).clips["id"])
    assert f"clips: 1 only in {root} ({lost.pop()})" in told
    assert main(["diff", f"{root}@first", str(small)]) == 0
    assert "have the same content" in capsys.readouterr().out
    assert main(["diff", f"{root}@second", str(small)]) == 2
    assert not verify(str(root)).damage and FeatureStore(root).finished
    (small / "tags" / "first.json").write_text("{}")
    assert main(["log", str(small)]) == 2 and "remove it and tag the store again" in capsys.readouterr().err


def test_stores_of_other_weights_differ_in_their_streams(
    root: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert extract([str(one) for one in tiny(bench, other, "--seed", 1)]) == 0
    capsys.readouterr()
    assert main(["diff", str(root), str(other)]) == 3
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and told[0].startswith("streams: ") and "with other content (audio/tiny-vggish" in told[0]


def read_by_trials(root: Path) -> str:
    """What the keys of trials are made of."""
    store = FeatureStore(root)
    return fingerprint_of(store, [path for path, spec in store.specs.items() if spec.table != "objects"])


def names_of(root: Path) -> set[str]:
    return {path.name for path in root.parent.iterdir() if path.suffix != ".jsonl"}


def test_deleted_clips_are_gone_and_the_rest_is_that_of_a_store_without_them(
    root: Path, built: Path, part: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert extract([str(one) for one in tiny(part, small)]) == 0
    before, whole = files_of(root), FeatureStore(root)
    (lost,) = set(whole.clips["id"]) - set(FeatureStore(small).clips["id"])
    assert main(["tag", str(root), "all"]) == 0
    assert main(["delete", str(root), lost, "--dry-run"]) == 0
    assert "would have 3 of 4 clips" in capsys.readouterr().out
    assert {name: data for name, data in files_of(root).items() if "tags/" not in name} == before
    assert main(["delete", str(root), lost, "--out", str(tmp_path / "new")]) == 0
    assert not differences(contents_of(str(tmp_path / "new")), contents_of(str(small)))
    assert main(["delete", str(root), lost]) == 0
    assert not differences(contents_of(str(root)), contents_of(str(small)))
    assert read_by_trials(root) == read_by_trials(small) and not verify(str(root)).damage
    assert main(["diff", f"{root}@all", str(root)]) == 3 and f"clips: 1 only in {root}@all" in capsys.readouterr().out
    assert names_of(root) == {"store", "small", "new"} and not (root / "lease.json").exists()
    assert len(FeatureStore(root)) == len(FeatureStore(small)) > 0
    for index in range(len(FeatureStore(small))):
        one, other = FeatureStore(root)[index], FeatureStore(small)[index]
        assert one.uid == other.uid and (one.audio == other.audio).all() and one.text_string == other.text_string
    assert main(["delete", str(root), "nobody"]) == 2 and "has no clip 'nobody'" in capsys.readouterr().err
    assert main(["delete", str(root), *FeatureStore(root).clips["id"]]) == 2
    assert extract([str(one) for one in tiny(bench, root)]) == 0  # what was deleted may come back
    assert not differences(contents_of(str(root)), contents_of(str(built)))


def test_compacted_store_has_whole_shards_and_the_same_content(
    part: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    for source in (part, bench):  # the second run starts a shard of its own
        assert extract([str(one) for one in tiny(source, root, "--clips-per-shard", 3)]) == 0
    before = FeatureStore(root)
    keys = read_by_trials(root)
    num_files = len([record for record in before.records if record.table.startswith("audio")])
    assert num_files == 2
    assert main(["compact", str(root)]) == 0 and main(["compact", str(root)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["compact", str(root), "--clips-per-shard", "1", "--dry-run"]) == 0
    assert main(["compact", str(root), "--clips-per-shard", "0"]) == 2
    assert main(["compact", str(root), "--clips-per-shard", "8"]) == 0
    after = FeatureStore(root)
    assert read_by_trials(root) == keys and not verify(str(root)).damage
    assert len([record for record in after.records if record.table.startswith("audio")]) == 1
    assert after.schema.streams["audio/tiny-vggish"].rows_per_shard == 8
    assert names_of(root) == {"store"}


def test_store_in_a_bucket_is_rewritten_to_a_new_place_only(
    built: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bucket has no rename by which all files change at once."""
    remote, first = "memory://rewritten/store", FeatureStore(built).clips["id"][0]
    folder, local = open_folder(remote), open_folder(built)
    before = {name: local.read(name) for name in local.names()}
    for name, data in before.items():
        folder.write(name, data)
    for command in (["delete", remote, first], ["compact", remote, "--clips-per-shard", "1"]):
        assert main(command) == 2
        assert f"{remote} is not a folder here; name a place for the new store by --out" in capsys.readouterr().err
    assert main(["delete", str(root), first]) == 0
    for out in ("memory://rewritten/new", str(tmp_path / "new")):
        assert main(["delete", remote, first, "--out", out]) == 0
        assert not differences(contents_of(out), contents_of(str(root))) and not verify(out).damage
    assert {name: folder.read(name) for name in folder.names()} == before


@pytest.mark.parametrize("moment", ["copy", "first rename", "second rename"])
def test_interrupted_rewriting_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    lost, whole = FeatureStore(root).clips["id"].iloc[-1], FeatureStore(root).fingerprint

    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "copy":
            patch.setattr(StoreWriter, "write_clips", killed)
        elif moment == "first rename":
            renames = iter([os.rename, killed])
            own = SimpleNamespace(rename=lambda *paths: next(renames)(*paths))
            patch.setattr("refavs.store.rewrite.os", own)
        else:
            patch.setattr("refavs.store.rewrite.shutil", SimpleNamespace(rmtree=killed))
        assert main(["delete", str(root), lost]) == 130
    if moment == "copy":
        assert FeatureStore(root).fingerprint == whole  # the original is as it was
        assert main(["delete", str(root), FeatureStore(root).clips["id"].iloc[0]]) == 0  # another call starts anew
    else:
        assert main(["compact", str(root)]) == 0
        assert lost not in set(FeatureStore(root).clips["id"])
    assert not verify(str(root)).damage and names_of(root) == {"store"}
