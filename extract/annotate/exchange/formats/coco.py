"""COCO JSON with run lengths: `track_id` and `fid` say which object of the clip a mask belongs to."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from extract.annotate.exchange.formats.drawn import (
    DrawnFrame,
    DrawnMask,
    Sizes,
    drawn_frame,
    frame_name,
    json_of,
    to_json,
    unusable,
)
from refavs.data.rle import PlainRunLengths, decoded, encoded
from refavs.files.typed_json import Count, OddRecord, shaped


class _Info(TypedDict):
    refavs_export: NotRequired[Count]


class _Image(TypedDict):
    id: Count
    file_name: str
    width: Count
    height: Count


class _Category(TypedDict):
    id: Count
    name: str


class _Annotation(TypedDict):
    image_id: Count
    category_id: Count
    segmentation: Any
    fid: NotRequired[Count]
    track_id: NotRequired[Count]


class _File(TypedDict):
    info: NotRequired[_Info]
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class _Compressed(TypedDict):
    size: list[Count]
    counts: str


def write(frames: Iterable[DrawnFrame], export: int) -> Iterator[bytes]:
    """The file in pieces."""
    images: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    annotations = 0
    yield b'{"info":' + to_json({"description": "refavs-annotate", "refavs_export": export}) + b',"annotations":['
    for frame in frames:
        images.append({"id": len(images) + 1, "file_name": frame_name(frame.clip, frame.second) + ".jpg",
                       "width": frame.width, "height": frame.height})  # fmt: skip
        for drawn in frame.masks:
            category = categories.setdefault(drawn.name, len(categories) + 1)
            if drawn.mask.any():
                annotations += 1
                yield (b"," if annotations > 1 else b"") + b"\n" + to_json({
                    "id": annotations, "image_id": len(images), "category_id": category, "iscrowd": 0,
                    "area": int(drawn.mask.sum()), "bbox": _box(drawn), "segmentation": encoded(drawn.mask),
                    "track_id": drawn.fid, "fid": drawn.fid,
                })  # fmt: skip
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    yield b'\n],"categories":' + to_json(listed) + b',"images":' + to_json(images) + b"}\n"


def _box(drawn: DrawnMask) -> list[int]:
    rows, columns = np.flatnonzero(drawn.mask.any(1)), np.flatnonzero(drawn.mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def export_of(path: Path) -> int | None:
    """The number of the export that a file comes from, if it says so."""
    return json_of(path, _File).get("info", {}).get("refavs_export")


def read(path: Path, sizes: Sizes) -> Iterator[DrawnFrame]:
    """The frames of a file, or of the only `.json` in a ZIP.

    Raises:
        DatasetError: it is no such file.
    """
    content: _File = json_of(path, _File)
    names = {category["id"]: category["name"] for category in content["categories"]}
    of_image: dict[int, list[_Annotation]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        size = image["height"], image["width"]
        yield drawn_frame(image["file_name"], size, sizes, of_image.pop(image["id"], []),
                          lambda annotation, size=size: _drawn(annotation, names, size))  # fmt: skip
    for number, left in of_image.items():
        yield unusable(f"{len(left)} masks of image {number}, which the file does not list; left out")


def _drawn(annotation: _Annotation, names: dict[int, str], size: tuple[int, int]) -> DrawnMask:
    """One mask; raises ValueError with the reason if it cannot be used."""
    name = names.get(annotation["category_id"], "")
    fid = annotation.get("fid", annotation.get("track_id"))
    if fid is None:
        raise ValueError(f"a mask {name!r} has no fid; left out. Give it the fid of its object")
    if annotation.get("track_id", fid) != fid:
        track = annotation.get("track_id")
        raise ValueError(f"the mask of object {track} ({name!r}) now has fid {fid}; left out. Set fid back to {track}")
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        raise ValueError(f"a polygon of object {fid} where masks were; left out. Export run lengths (RLE)")
    try:
        plain = isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list)
        lengths = shaped(segmentation, PlainRunLengths if plain else _Compressed, "segmentation")
        if lengths["size"] != list(size):
            raise OddRecord(f"its size is {lengths['size'][:4]}, the frame's {list(size)}")
        return DrawnMask(fid=fid, name=name, mask=decoded(lengths))
    except ValueError as error:
        reason = str(error)[:100]
        raise ValueError(f"the mask of object {fid} is unusable ({reason}); left out. Export it again") from None
