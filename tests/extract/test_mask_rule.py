"""The rule by which masks are read, from the command line to the store; nulls without mask files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.training.evaluate import rows_of
from extract.cli import main
from extract.pipeline.input_check import check_masks
from extract.pipeline.plan import Masks, object_units
from refavs.data.layouts import read_source
from refavs.errors import DatasetError, StoreError
from refavs.steps import Steps
from refavs.store.folders import open_folder
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_wav
from tests.extract.command import in_this_process, refusal, run_with, tiny
from tests.refavs.png import GREY, PALETTE, write_png

pytestmark = pytest.mark.usefixtures("small_networks")

NULL = "null_m-a_0_10"
TWO_WAYS = bytes([255, 255, 255, 0, 0, 0])  # index 1 is black, 0 is white
SIDE = 16
QUARTER = np.zeros((SIDE, SIDE), np.uint8)
QUARTER[4:12, 4:12] = 1


def write_bench(root: Path, *rows: str) -> Path:
    """A benchmark of grey clips without masks; a row is its split and the name of its clip."""
    lines = []
    for split, clip in (row.split() for row in rows):
        lines.append(f"{clip},{clip}_thing_1,{split},0,the thing of {clip}\n")
        frames = root / "media" / clip / "frames"
        if not frames.exists():
            frames.mkdir(parents=True)
            for second in range(10):
                Image.new("RGB", (SIDE, SIDE), (len(lines) * 40,) * 3).save(frames / f"{second}.jpg")
            write_wav(frames.parent / "audio.wav", np.zeros(160_000, np.int16))
    (root / "metadata.csv").write_text("vid,uid,split,fid,exp\n" + "".join(lines))
    return root


def draw(root: Path, clip: str, colour_type: int, palette: bytes | None = None) -> None:
    for second in range(10):
        write_png(root / "gt_mask" / clip / "fid_0" / f"{second:05d}.png", QUARTER, colour_type, palette=palette)


def masks_of(store: Path) -> dict[str, float]:
    """By uid, the share of the picture that is the object in all seconds."""
    samples = {sample.uid: sample.mask for sample in FeatureStore(store)}
    assert all(mask is not None for mask in samples.values())
    return {uid: float(mask.float().mean()) for uid, mask in samples.items() if mask is not None}


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_masks_of_two_meanings_are_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, more: tuple[str, ...]
) -> None:
    source = write_bench(tmp_path / "bench", "train a_0_10")
    draw(source, "a_0_10", PALETTE, TWO_WAYS)
    line = refusal(capsys, *tiny(source, tmp_path / "store", *more))
    assert "gt_mask/a_0_10/fid_0/00000.png is ambiguous" in line
    assert "--mask-rule nonzero or --mask-rule index" in line and not (tmp_path / "store").exists()


def test_label_image_of_several_objects_is_not_read_as_each_of_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, labels = write_bench(tmp_path / "bench", "train a_0_10"), QUARTER.copy()
    labels[4:8] *= 2
    with (source / "metadata.csv").open("a") as file:
        file.write("a_0_10,a_0_10_other_1,train,1,the other\n")
    for fid, second in ((fid, second) for fid in (0, 1) for second in range(10)):
        write_png(source / "gt_mask" / "a_0_10" / f"fid_{fid}" / f"{second:05d}.png", labels, GREY)
    line = refusal(capsys, *tiny(source, tmp_path / "store"))
    assert "fid_1/00000.png has several labels, and " in line and "fid_0 the same files" in line
    objects = [object_units(read_source(source), rule) for rule in ("auto", "nonzero")]
    check_masks(open_folder(tmp_path / "store"), objects[1], Steps(10))  # they were told to be one object
    for second in range(10):  # each object's own
        write_png(source / "gt_mask" / "a_0_10" / "fid_1" / f"{second:05d}.png", labels * (labels == 2), GREY)
    check_masks(open_folder(tmp_path / "store"), objects[0], Steps(10))


@pytest.mark.long
def test_store_keeps_the_rule_and_refuses_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_with(monkeypatch, in_this_process)
    source, store = write_bench(tmp_path / "bench", "train a_0_10"), tmp_path / "store"
    draw(source, "a_0_10", PALETTE, TWO_WAYS)
    assert main([*map(str, tiny(source, store, "--mask-rule", "index"))]) == 0
    assert masks_of(store) == {"a_0_10_thing_1": 0.25}
    assert json.loads((store / "zarr.json").read_text())["attributes"]["mask_rule"] == "index"

    write_bench(source, "train a_0_10", f"train {NULL}", "val b_0_10")
    draw(source, "b_0_10", PALETTE, TWO_WAYS)
    capsys.readouterr()
    before = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file())
    line = refusal(capsys, *tiny(source, store, "--mask-rule", "nonzero"))
    assert "has masks read by mask rule index, this run reads them by nonzero; leave out --mask-rule" in line
    assert sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file()) == before
    assert main([*map(str, tiny(source, store))]) == 0  # goes on by the store's rule
    assert masks_of(store) == {"a_0_10_thing_1": 0.25, f"{NULL}_thing_1": 0.0, "b_0_10_thing_1": 0.25}


def test_nulls_need_no_mask_files(tmp_path: Path) -> None:
    root = write_bench(tmp_path / "bench", "train a_0_10", f"test_n {NULL}")
    source = read_source(root)
    assert source.report.names["null_masks_not_shipped"] == [f"{NULL}/fid_0"]
    assert source.report.names["missing_masks"] == ["a_0_10/fid_0"]
    assert list(source.expressions["fid"]) == [-1, 0]
    assert [unit.name for unit in object_units(source, "auto")] == [f"{NULL}/0"]


@pytest.mark.long
@pytest.mark.parametrize("case", ["masks/index_no_palette", "null-masks-not-shipped"])
def test_source_of_the_cases_is_extracted_with_all_its_masks(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    run_with(monkeypatch, in_this_process)
    assert main([*map(str, tiny(shared / "cases" / case, tmp_path / "store"))]) == 0
    store = FeatureStore(tmp_path / "store")
    table, shares = store.expressions, masks_of(tmp_path / "store")
    assert {uid: share > 0 for uid, share in shares.items()} == {uid: "null" not in uid for uid in table["uid"]}
    assert "null" not in case or [uid for uid in shares if "null" in uid]
    for split in set(table["split"]):
        assert len(rows_of(store, [split])) == (table["split"] == split).sum()


def test_masks_of_a_null_are_empty_or_refused(tmp_path: Path) -> None:
    """Files of it that are there are read all the same: a clip may have that name by accident."""
    root = write_bench(tmp_path / "bench", f"train {NULL}")
    path = root / "gt_mask" / NULL / "fid_0" / "00004.png"
    write_png(path, 0 * QUARTER, GREY)
    (item,) = (unit.item for unit in object_units(read_source(root), "auto"))
    assert isinstance(item, Masks) and not item.read(Steps(10), SIDE).any()
    write_png(path, QUARTER, GREY)
    with pytest.raises(DatasetError, match=r"refers to nothing, and its masks \(.*00004.png, \.\.\.\) mark one"):
        item.read(Steps(10), SIDE)


@pytest.mark.long
def test_store_without_a_rule_takes_plain_grey_masks_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Grey masks were always read as above zero; older versions read some others as empty."""
    run_with(monkeypatch, in_this_process)
    source, store = write_bench(tmp_path / "bench", "train a_0_10"), tmp_path / "store"
    draw(source, "a_0_10", GREY)
    assert main([*map(str, tiny(source, store))]) == 0
    description = json.loads((store / "zarr.json").read_text())
    del description["attributes"]["mask_rule"]
    (store / "zarr.json").write_text(json.dumps(description))

    write_bench(source, "train a_0_10", "val b_0_10")
    draw(source, "b_0_10", GREY)
    check_masks(open_folder(store), object_units(read_source(source), "auto"), Steps(10))
    shutil.rmtree(source / "gt_mask" / "b_0_10")
    draw(source, "b_0_10", PALETTE, bytes(3))
    with pytest.raises(StoreError, match=r"made before masks had a rule .*b_0_10/fid_0/00000\.png is no plain grey"):
        check_masks(open_folder(store), object_units(read_source(source), "auto"), Steps(10))
