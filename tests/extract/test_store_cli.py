"""refavs-store on extracted stores: repair recomputes lost rows, and export and import are lossless."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from extract.cli import main as extract
from extract.store_cli import main
from refavs.data.layouts.registry import find_clip
from refavs.store.reader import FeatureStore
from refavs.store.shard_writer import ShardWriter
from refavs.store.verify import verify
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, run_with, tiny

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]  # for what its fixtures make

MAPS = "clips/visual/tiny-swin/pixel_decoder/mask_features/c.0.0.0.0.0"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, in_this_process)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=3, seed=1, size=96, videos=2)
    return root


@pytest.fixture(scope="module")
def built(bench: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        run_with(patch, in_this_process)
        arguments = tiny(bench, bench.parent / "store", "--levels", "pixel_decoder,backbone")
        assert extract([str(part) for part in arguments]) == 0
    yield bench.parent / "store"


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def content(root: Path) -> dict[str, bytes]:
    """Every file of a store, without the seconds of its records and the log of its runs."""
    from tests.refavs.small_store import files_of

    return {name: data for name, data in files_of(root).items() if name not in (".lock", "extract.jsonl")}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_store_says_how_it_was_extracted(built: Path, bench: Path) -> None:
    facts = FeatureStore(built).attributes["extraction"]
    assert facts == {"source": str(bench), "layout": "ref-avs-bench", "batch_clips": 1, "expressions": None}


def test_repair_of_a_whole_store_does_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(root)
    assert main(["repair", str(root)]) == 0
    assert content(root) == before and "0 damaged" in capsys.readouterr().out


def test_repair_computes_what_is_lost_from_the_noted_source(
    built: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(root / MAPS, 100)
    flip(root / "text/tiny-roberta/features/c.0.0.0", 5)
    flip(root / "objects/mask/c.0.0.0.0", 1)
    flip(root / "clips/audio/tiny-vggish/features/c.0.0.0", -3)
    assert main(["verify", str(root)]) == 3
    assert f"to repair it: refavs-store repair {root}" in capsys.readouterr().out
    assert main(["repair", str(root)]) == 0
    out = capsys.readouterr().out
    assert content(root) == content(built) and "removed, to be extracted again: " in out and "fingerprint" not in out
    assert not list(root.rglob("*.partial")) and not (root / "lease.json").exists()


def test_repair_brings_lost_records_shards_and_expressions_back(built: Path, root: Path) -> None:
    (root / "commits/visual/tiny-swin/pixel_decoder/00000.json").unlink()
    (root / MAPS).unlink()
    flip(root / "commits/text/tiny-roberta/00000.json", 50)
    flip(root / "expressions/uid/c.0.0", 1)
    (root / "zarr.json").write_bytes((root / "zarr.json").read_bytes()[:50])
    assert main(["repair", str(root)]) == 0
    assert content(root) == content(built) and not verify(root).damage


def test_repair_to_other_values_finishes_the_store_with_them(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ShardWriter.write

    def other(self: ShardWriter, key: str, arrays: dict, meta: dict | None = None) -> None:
        write(self, key, {path: (array + 1).astype(array.dtype) for path, array in arrays.items()}, meta)

    monkeypatch.setattr(ShardWriter, "write", other)
    flip(root / MAPS, 100)
    before = FeatureStore(root).fingerprint
    assert main(["repair", str(root)]) == 0
    after = FeatureStore(root)
    assert after.finished and f"changed from {before} to {after.fingerprint}" in capsys.readouterr().out


def test_repair_from_a_source_that_has_moved(built: Path, root: Path, bench: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(bench, tmp_path / "moved")
    flip(root / MAPS, 100)
    assert main(["repair", str(root), "--source", str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    assert main(["repair", str(root), "--source", str(moved)]) == 0
    assert content(root) == content(built)


def test_repair_without_the_weights_removes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = json.loads((root / "zarr.json").read_text())
    streams = description["attributes"]["refavs_schema"]["streams"]
    for level in ("backbone", "pixel_decoder"):
        streams[f"visual/tiny-swin/{level}"]["fingerprint"]["weights"] = "sha256:0"
    (root / "zarr.json").write_text(json.dumps(description))
    (root / "commits/listing.json").unlink()
    flip(root / MAPS, 100)
    before = content(root)
    assert main(["repair", str(root), "--weights-dir", str(root.parent)]) == 2
    assert "has none of visual.safetensors" in capsys.readouterr().err
    assert content(root) == before


def test_repair_from_other_files_is_refused(
    root: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(bench, tmp_path / "moved"))
    first, second = sorted((moved / "media").iterdir())[:2]
    shutil.copy(second / "frames/0.jpg", first / "frames/0.jpg")
    flip(root / MAPS, 100)
    assert main(["repair", str(root), "--source", str(moved)]) == 2
    assert "holds features of other files" in capsys.readouterr().err


def test_folders_whose_names_are_no_text_are_extracted_and_repaired(bench: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9 %41")
    source = Path(shutil.copytree(bench, place / "bench", symlinks=True))
    table = place / "about.csv"
    table.write_text("video,exp\n" + "".join(f"{path.name},the dog\n" for path in (source / "videos").iterdir()))
    root = place / "store"
    assert extract([*map(str, tiny(source / "videos", root)), f"--expressions={table}"]) == 0
    found = find_clip(FeatureStore(root).attributes, next((source / "videos").iterdir()).stem)
    assert found is not None and found.video is not None and found.video.parent == source / "videos"
    before = content(root)
    flip(root / MAPS, 100)
    flip(root / "expressions/uid/c.0.0", 1)
    assert main(["repair", str(root)]) == 0
    assert content(root) == before and not verify(root).damage


def test_rows_that_are_gone_from_the_source_are_named(
    root: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(bench, tmp_path / "moved"))
    lost = FeatureStore(root).clips["id"][1]
    shutil.rmtree(moved / "media" / lost)
    flip(root / MAPS, 100)
    assert main(["repair", str(root), "--source", str(moved)]) == 3
    err = capsys.readouterr().err
    assert "rows of visual/tiny-swin/pixel_decoder are lost, because the source no longer has them" in err


def test_export_and_import_commands(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, back = str(tmp_path / "s.h5"), str(tmp_path / "back")
    assert main(["export", str(built), file]) == 0
    assert main(["import", file, back]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(FeatureStore(built).fingerprint) == 2 and "rows" in captured.err
    assert {name: data for name, data in content(tmp_path / "back").items()} == content(built)
    (tmp_path / "x.h5").write_text("mine")
    assert main(["export", str(built), str(tmp_path / "x.h5")]) == 2
    assert main(["import", str(tmp_path / "x.h5"), str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.count("\n") == 2 and not (tmp_path / "other").exists()


@pytest.mark.parametrize("arguments", [["repair", "none"], ["export", "none", "x.h5"], ["import", "none.h5", "x"]])
def test_what_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["info", "verify", "repair", "export", "import", "drop", "upgrade"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"refavs-store {command} features" in capsys.readouterr().out
