"""CVAT for images 1.1: one `<image>` per frame and one `<mask>` per object in it.

CVAT imports no mask tracks (it keeps a track's first mask only), so the identity of an object is in `group_id` and in
the attribute `fid`. Runs of a mask go row by row inside its tight box.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool

from extract.annotate.exchange.formats.drawn import (
    DrawnFrame,
    DrawnMask,
    Sizes,
    drawn_frame,
    frame_name,
    opened,
    to_json,
    unusable,
)
from refavs.data.rle import from_runs, runs_of
from refavs.errors import DatasetError

_BLOCK_BYTES = 2**20
_SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "cuboid", "skeleton")
_Attributes = dict[str, str]


def write(frames: Iterable[DrawnFrame], export: int) -> Iterator[bytes]:
    """The file in pieces. CVAT keeps no number of an export; `import --export` says it."""
    yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    for number, frame in enumerate(frames):
        name = quoteattr(frame_name(frame.clip, frame.second) + ".jpg")
        lines = [f'<image id="{number}" name={name} width="{frame.width}" height="{frame.height}">']
        lines += [_mask_element(drawn) for drawn in frame.masks if drawn.mask.any()]
        yield "\n".join([*lines, "</image>\n"]).encode()
    yield b"</annotations>\n"


def labels(names: Iterable[str]) -> bytes:
    """The labels with their attribute, for "Raw" in the constructor of a CVAT task."""
    attribute = {"name": "fid", "input_type": "number", "mutable": False, "values": ["0", "9999", "1"],
                 "default_value": "0"}  # fmt: skip
    return to_json([{"name": name, "type": "mask", "attributes": [attribute]} for name in sorted(set(names))])


def read(path: Path, sizes: Sizes) -> Iterator[DrawnFrame]:
    """The frames of a file, or of the only `.xml` in a ZIP.

    Raises:
        DatasetError: it is no such file.
    """
    reader = _Reader(sizes)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_declarations  # no entities, nothing from outside the file
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    with opened(path, ".xml") as file:
        try:
            while block := file.read(_BLOCK_BYTES):
                parser.Parse(block)
                yield from reader.taken()
            parser.Parse(b"", True)
        except (expat.ExpatError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read as CVAT for images 1.1 ({error}); export it from CVAT in that "
                               "format") from error  # fmt: skip
    if reader.root != "annotations":
        raise DatasetError(f"{path} begins with <{reader.root}>, not with <annotations>; export it from CVAT as 'CVAT "
                           "for images 1.1'")  # fmt: skip


def _refuse_declarations(*_: object) -> None:
    raise ValueError("it declares a document type, which CVAT never writes")


def _mask_element(drawn: DrawnMask) -> str:
    (top, bottom), (left, right) = _ends(np.any(drawn.mask, 1)), _ends(np.any(drawn.mask, 0))
    runs = ", ".join(map(str, runs_of(drawn.mask[top:bottom, left:right], "C")))
    return (f'<mask label={quoteattr(drawn.name)} source="auto" occluded="0" rle="{runs}" left="{left}" top="{top}" '
            f'width="{right - left}" height="{bottom - top}" z_order="0" group_id="{drawn.fid}">'
            f'<attribute name="fid">{drawn.fid}</attribute></mask>')  # fmt: skip


def _ends(used: Bool[np.ndarray, " n"]) -> tuple[int, int]:
    places = np.flatnonzero(used)
    return int(places[0]), int(places[-1]) + 1


class _Reader:
    """Collects frames from the elements of a file."""

    def __init__(self, sizes: Sizes) -> None:
        self.root = ""
        self._sizes = sizes
        self._done: list[DrawnFrame] = []
        self._image: _Attributes | None = None
        self._shapes: list[tuple[str, _Attributes]] = []  # kind and attributes
        self._letters: list[str] | None = None

    def taken(self) -> list[DrawnFrame]:
        """The frames completed since the last call."""
        done, self._done = self._done, []
        return done

    def start(self, kind: str, attributes: _Attributes) -> None:
        self.root = self.root or kind
        if kind == "image":
            self._image, self._shapes = attributes, []
        elif kind == "track":
            name = attributes.get("label", "")
            self._done.append(unusable(f"track {name!r}: CVAT keeps only one mask of a track; left out. Draw a mask in "
                                       "every frame instead"))  # fmt: skip
        elif self._image is not None and (kind == "mask" or kind in _SHAPES):
            self._shapes.append((kind, dict(attributes)))
        elif kind == "attribute" and attributes.get("name") == "fid" and self._shapes:
            self._letters = []

    def text(self, letters: str) -> None:
        if self._letters is not None:
            self._letters.append(letters)

    def end(self, kind: str) -> None:
        if kind == "attribute" and self._letters is not None:
            self._shapes[-1][1]["fid"] = "".join(self._letters).strip()
            self._letters = None
        elif kind == "image" and self._image is not None:
            self._done.append(self._frame(self._image))
            self._image = None

    def _frame(self, image: _Attributes) -> DrawnFrame:
        name = image.get("name", "")
        try:
            size = _whole(image, "height"), _whole(image, "width")
        except ValueError as error:
            return unusable(f"frame {name[:80]!r}: {error}; left out")
        return drawn_frame(name, size, self._sizes, self._shapes, lambda shape: _drawn(*shape, *size))


def _drawn(kind: str, shape: _Attributes, height: int, width: int) -> DrawnMask:
    """One mask; raises ValueError with the reason if it cannot be used."""
    label = shape.get("label", "")[:80]
    if kind != "mask":
        raise ValueError(f"a {kind} {label!r} where masks were; left out. Draw with CVAT's brush")
    fid = _whole(shape, "fid")
    group = _whole(shape, "group_id") if shape.get("group_id") else 0
    if group not in (0, fid):
        raise ValueError(f"the mask of object {group} ({label!r}) now has fid {fid}; left out. Set fid back to {group}")
    left, top, wide, high = (_whole(shape, name) for name in ("left", "top", "width", "height"))
    if not (wide and high) or left + wide > width or top + high > height:
        raise ValueError(f"the mask of object {fid} does not lie inside the frame; left out. Export it again")
    mask = np.zeros((height, width), bool)
    try:
        runs = list(map(int, shape.get("rle", "").split(",")))
        mask[top : top + high, left : left + wide] = from_runs(runs, high, wide, "C")
    except ValueError as error:
        raise ValueError(f"the mask of object {fid} is damaged ({str(error)[:80]}); left out. Export it again"
                         ) from None
    return DrawnMask(fid=fid, name=shape.get("label", ""), mask=mask)


def _whole(attributes: _Attributes, name: str) -> int:
    text = attributes.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name} is {text[:20]!r}, not a whole number; left out")
    return int(text)
