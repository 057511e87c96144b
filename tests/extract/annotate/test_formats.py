"""The files of label tools: masks come back unchanged, and what cannot be used costs one line and nothing else."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.annotate.exchange.formats import cvat, label_studio
from extract.annotate.exchange.formats.drawn import DrawnFrame, DrawnMask, frame_of
from extract.annotate.exchange.formats.registry import FORMATS
from refavs.errors import DatasetError

SMALL = np.array([[0, 1], [1, 1], [0, 0]], bool)  # the test vector of the formats' descriptions
SIZES = {"abc": (3, 2)}


def random_masks(number: int) -> Iterator[np.ndarray]:
    """Masks of every kind: noise, blobs with holes, thin lines, one pixel, the full frame, nothing."""
    rng = np.random.default_rng(7)
    for index in range(number):
        height, width = rng.integers(1, 48, 2).tolist()
        kind = index % 7
        mask = np.zeros((height, width), bool)
        if kind == 0:
            mask = rng.random((height, width)) < rng.random()
        elif kind == 1:
            rows, columns = np.mgrid[:height, :width]
            distance = np.hypot(rows - rng.random() * height, columns - rng.random() * width)
            mask = (distance < height / 2) & (distance > height / 5)
        elif kind == 2:
            mask[int(rng.integers(height))] = True
            mask[:, int(rng.integers(width))] ^= True
        elif kind == 3:
            mask[int(rng.integers(height)), int(rng.integers(width))] = True
        elif kind == 4:
            mask[:] = True
        elif kind == 5:
            mask = np.kron(rng.random((height, 1)) < 0.5, np.ones((1, width))).astype(bool)
        yield mask


def written(name: str, frames: list[DrawnFrame], folder: Path) -> Path:
    path = folder / FORMATS[name].file_name
    path.write_bytes(b"".join(FORMATS[name].write(frames, 4)))
    return path


def small_frame(mask: np.ndarray = SMALL) -> DrawnFrame:
    return DrawnFrame(clip="abc", second=0, height=3, width=2, masks=(DrawnMask(fid=1, name='gu"<i>t & é', mask=mask),))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_thousand_masks_come_back_identical(name: str, tmp_path: Path) -> None:
    masks = list(random_masks(1000))
    frames = [DrawnFrame(clip=f"c_{index}", second=index % 10, height=mask.shape[0], width=mask.shape[1],
                         masks=(DrawnMask(fid=index, name="a drum", mask=mask),))
              for index, mask in enumerate(masks)]  # fmt: skip
    sizes = {frame.clip: (frame.height, frame.width) for frame in frames}
    found = list(FORMATS[name].read(written(name, frames, tmp_path), sizes))
    assert len(found) == 1000 and not any(frame.refused for frame in found)
    for index, (before, after) in enumerate(zip(frames, found, strict=True)):
        assert (after.clip, after.second) == (before.clip, before.second)
        if not masks[index].any():
            assert after.masks == ()
            continue
        (drawn,) = after.masks
        assert (drawn.fid, drawn.name) == (index, "a drum") and np.array_equal(drawn.mask, masks[index])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_large_mask_and_two_objects_of_one_name_come_back(name: str, tmp_path: Path) -> None:
    large = np.zeros((700, 900), bool)
    large[10:690, 5:] = True
    masks = tuple(DrawnMask(fid=fid, name="drum", mask=mask) for fid, mask in enumerate((large, ~large), start=1))
    frame = DrawnFrame(clip="abc", second=3, height=700, width=900, masks=masks)
    (found,) = FORMATS[name].read(written(name, [frame], tmp_path), {"abc": (700, 900)})
    assert [drawn.fid for drawn in found.masks] == [1, 2]
    assert all(np.array_equal(*pair) for pair in zip((large, ~large), (one.mask for one in found.masks), strict=True))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_odd_names_come_back_and_a_zip_is_read(name: str, tmp_path: Path) -> None:
    path = written(name, [small_frame()], tmp_path)
    archive = tmp_path / "tool.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(path, f"annotations/{path.name}")
        file.writestr("images/abc_0.jpg", b"")
    for source in (path, archive):
        (frame,) = FORMATS[name].read(source, SIZES)
        assert frame.masks[0].name == 'gu"<i>t & é' and np.array_equal(frame.masks[0].mask, SMALL)


def test_cvat_counts_runs_row_by_row_inside_the_box(tmp_path: Path) -> None:
    text = written("cvat", [small_frame()], tmp_path).read_text()
    assert 'rle="1, 3" left="0" top="0" width="2" height="2" z_order="0" group_id="1"' in text
    assert '<attribute name="fid">1</attribute>' in text
    assert '<image id="0" name="abc_0.jpg" width="2" height="3">' in text


def test_coco_counts_runs_column_by_column(tmp_path: Path) -> None:
    content = json.loads(written("coco", [small_frame()], tmp_path).read_text())
    (annotation,) = content["annotations"]
    assert annotation["segmentation"] == {"size": [3, 2], "counts": "11110"}  # 1, 1, 1, 2 - 1, 1 - 1
    assert (annotation["bbox"], annotation["area"], annotation["track_id"]) == ([0, 0, 2, 2], 3, 1)


def test_label_studio_writes_every_pixel_four_times() -> None:
    data = label_studio.packed(np.array([[True]]))
    bits = "".join(f"{byte:08b}" for byte in data)
    # 4 values of 8 bits; runs of up to 2^3, 2^4, 2^8, 2^16; no background, then a run of 4 in 3 bits.
    assert bits[:53] == f"{4:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    assert bits[53:67] == "1" + "00" + "011" + "11111111" and set(bits[67:]) <= {"0"}


def test_label_studio_reads_literals() -> None:
    header = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    values = "".join(f"{value:08b}" for value in (9, 9, 9, 0, 9, 9, 9, 200))
    stream = header + "0" + "01" + "0111" + values
    stream += "0" * (-len(stream) % 8)
    data = bytes(int(stream[at : at + 8], 2) for at in range(0, len(stream), 8))
    assert label_studio.unpacked(data, 1, 2).tolist() == [[False, True]]  # the fourth value of a pixel counts


@pytest.mark.parametrize("data", [b"", b"\x00" * 12, label_studio.packed(SMALL)[:-3], b"\xff" * 40])
def test_label_studio_refuses_a_damaged_stream(data: bytes) -> None:
    with pytest.raises(ValueError, match="its stream"):
        label_studio.unpacked(data, 3, 2)


@pytest.mark.parametrize(("name", "place"), [
    ("abc_3.jpg", ("abc", 3)), ("frames/a_b_10.JPG", ("a_b", 10)), ("x\\abc_0", ("abc", 0)), ("abc.jpg", None),
    ("_3.jpg", None), ("abc_x.jpg", None), ("", None), ("abc_99999999999999", None),
])  # fmt: skip
def test_a_frames_name_says_clip_and_second(name: str, place: tuple[str, int] | None) -> None:
    assert frame_of(name) == place


# What tools and people change.

MASK = (
    '<mask label="g" rle="1, 3" left="0" top="0" width="2" height="2" group_id="1"><attribute name="fid">1</attribute>'
    "</mask>"
)


def read_cvat(path: Path, inside: str, size: str = 'width="2" height="3"', name: str = "abc_0") -> DrawnFrame:
    path.write_text(f'<annotations><image id="0" name="{name}" {size}>{inside}</image></annotations>')
    (frame,) = cvat.read(path, SIZES)
    return frame


@pytest.mark.parametrize(("inside", "said"), [
    (MASK.replace('"fid">1', '"fid">2'), "clip abc, second 0: the mask of object 1 ('g') now has fid 2; left out. Set "
                                         "fid back to 1"),
    ('<polygon label="g" points="1,1;2,2;0,1"/>', "a polygon 'g' where masks were; left out. Draw with CVAT's brush"),
    ('<mask label="g" rle="1, 3" left="0" top="0" width="2" height="2"/>', "fid is '', not a whole number"),
    (MASK.replace('"1, 3"', '"1, 2"'), "the mask of object 1 is damaged (its runs have 3 pixels"),
    (MASK.replace('"1, 3"', '"1, x"'), "the mask of object 1 is damaged"),
    (MASK.replace('left="0"', 'left="1"'), "the mask of object 1 does not lie inside the frame"),
    (MASK.replace('left="0"', 'left="-1"'), "left is '-1', not a whole number"),
])  # fmt: skip
def test_cvat_leaves_out_what_is_no_mask_of_the_object(inside: str, said: str, tmp_path: Path) -> None:
    frame = read_cvat(tmp_path / "a.xml", inside + MASK)
    assert len(frame.refused) == 1 and said in frame.refused[0]
    assert len(frame.masks) == 1, "the good mask of the frame is kept"


def test_a_new_cvat_mask_without_a_group_is_taken_by_its_fid(tmp_path: Path) -> None:
    frame = read_cvat(tmp_path / "a.xml", MASK.replace('group_id="1"', 'group_id="0"'))
    assert [drawn.fid for drawn in frame.masks] == [1] and not frame.refused


@pytest.mark.parametrize(("arguments", "said"), [
    ({"size": 'width="3" height="2"'}, "the file says 3 x 2 pixels, the frame has 2 x 3; left out"),
    ({"size": 'width="x" height="2"'}, "width is 'x'"),
    ({"name": "other_0"}, "the project has no clip 'other'"), ({"name": "picture.png"}, "'picture.png' is not named"),
])  # fmt: skip
def test_cvat_leaves_out_frames_of_another_size_or_clip(arguments: Any, said: str, tmp_path: Path) -> None:
    frame = read_cvat(tmp_path / "a.xml", MASK, **arguments)
    assert said in frame.refused[0] and not frame.masks


ENTITIES = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y SYSTEM "file:///etc/hostname">]><annotations>&x;</annotations>'


@pytest.mark.parametrize(("text", "said"), [
    (ENTITIES, "it declares a document type"), ("<annotations>", "no element found"), ("PK", "syntax error"),
    ("<html></html>", "begins with <html>"), ("", "no element found"),
])  # fmt: skip
def test_cvat_refuses_other_files(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DatasetError, match=said):
        list(cvat.read(tmp_path / "a.xml", SIZES))


def test_a_cvat_track_of_masks_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(f'<annotations><track label="g">{MASK}</track></annotations>')
    (frame,) = cvat.read(tmp_path / "a.xml", SIZES)
    assert "CVAT keeps only one mask of a track" in frame.refused[0] and not frame.masks


def changed_json(name: str, tmp_path: Path, change: Callable[[Any], object]) -> list[DrawnFrame]:
    path = written(name, [small_frame()], tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return list(FORMATS[name].read(path, SIZES))


def in_coco(**changes: Any) -> Callable[[Any], object]:
    return lambda content: content["annotations"][0].update(changes)


@pytest.mark.parametrize(("change", "said"), [
    (in_coco(fid=2), "the mask of object 1 ('gu\"<i>t & é') now has fid 2"),
    (in_coco(segmentation=[[0, 0, 1, 1, 0, 1]]), "a polygon of object 1 where masks were"),
    (in_coco(segmentation={"size": [2, 3], "counts": [6]}), "its size is [2, 3], the frame's [3, 2]"),
    (in_coco(segmentation={"size": [3, 2], "counts": "z"}), "the mask of object 1 is unusable"),
    (in_coco(segmentation={"size": [3, 2], "counts": [6, 1]}), "its runs have 7 pixels"),
    (in_coco(segmentation=None), "the mask of object 1 is unusable"),
    (in_coco(image_id=9), "1 masks of image 9, which the file does not list"),
    (lambda content: content["images"][0].update(width=4), "the file says 4 x 3 pixels"),
    (lambda content: content["images"][0].update(file_name="b_0.jpg"), "the project has no clip 'b'"),
])  # fmt: skip
def test_coco_leaves_out_what_is_no_mask_of_the_object(
    change: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    refused = [line for frame in changed_json("coco", tmp_path, change) for line in frame.refused]
    assert len(refused) == 1 and said in refused[0]


def in_region(**changes: Any) -> Callable[[Any], object]:
    return lambda content: content[0]["predictions"][0]["result"][0].update(changes)


@pytest.mark.parametrize(("change", "said"), [
    (in_region(type="polygonlabels"), "a region of type 'polygonlabels' where brush masks were"),
    (in_region(original_width=4), "the file says 4 x 3 pixels"),
    (in_region(value={"format": "rle", "rle": [1], "brushlabels": ["1 g"]}), "the mask of object 1 is damaged"),
    (in_region(value={"format": "rle", "rle": [300], "brushlabels": ["1 g"]}), "the mask of object 1 is damaged"),
    (in_region(value={"format": "rle", "rle": [], "brushlabels": ["g"]}), "a mask with the label 'g'"),
    (in_region(value={"format": "rle", "rle": [], "brushlabels": []}), "a mask with the label ''"),
    (in_region(value=3), "value is '3'"),
    (lambda content: content[0]["data"].update(frame="b_0"), "the project has no clip 'b'"),
    (lambda content: content[0].update(predictions=[]), "the task has no annotation; left as it was"),
])  # fmt: skip
def test_label_studio_leaves_out_what_is_no_mask_of_the_object(
    change: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    refused = [line for frame in changed_json("label-studio", tmp_path, change) for line in frame.refused]
    assert len(refused) == 1 and said in refused[0]


def test_label_studio_reads_the_newest_finished_annotation(tmp_path: Path) -> None:
    def annotated(content: Any) -> None:
        first = content[0]["predictions"][0]["result"]
        content[0]["annotations"] = [
            {"result": first, "completed_by": 3, "updated_at": "2026-11-02"},
            {"result": [], "completed_by": {"email": "a@b"}, "updated_at": "2026-11-03"},
            {"result": first, "completed_by": 4, "updated_at": "2026-11-04", "was_cancelled": True},
        ]

    (frame,) = changed_json("label-studio", tmp_path, annotated)
    assert frame.masks == () and frame.author == "a@b 2026-11-03"


@pytest.mark.parametrize("name", ["coco", "label-studio"])
@pytest.mark.parametrize("text", ["", "{", "3", "[" * 100_000, '{"images": 3}', '[{"data": 4}]'])
def test_other_json_is_refused_in_one_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match="is not what the tool exports"):
        list(FORMATS[name].read(tmp_path / "a.json", SIZES))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        list(cvat.read(tmp_path / "none.xml", SIZES))
    with pytest.raises(DatasetError, match="it is a folder"):
        list(cvat.read(tmp_path, SIZES))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.xml", "<annotations>" + "<image/>" * 999 + "</annotations>")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[40:60] = b"\xff" * 20
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot be read .*; export it again"):
        list(cvat.read(tmp_path / "a.zip", SIZES))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.xml", "<annotations/>")
        file.writestr("b.xml", "<annotations/>")
    with pytest.raises(DatasetError, match=r"holds 2 files \*.xml"):
        list(cvat.read(tmp_path / "a.zip", SIZES))
    monkeypatch.setattr("extract.annotate.exchange.formats.drawn.MOST_BYTES", 20)
    for name in ("a.xml", "b.zip"):
        path = tmp_path / name
        if name == "b.zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("a.xml", "<annotations>" + " " * 10_000)
        else:
            path.write_text("<annotations></annotations>")
        with pytest.raises(DatasetError, match="a file of this kind has 20 at most"):
            list(cvat.read(path, SIZES))
