"""Label Studio: one task per frame, with brush masks as predictions; annotations of people take their place.

A brush mask is a bit stream of runs over RGBA bytes, so every pixel occurs four times. The label of a mask is
`<fid> <name>`, because Label Studio keeps nothing else of ours on a region.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool, UInt8

from extract.annotate.exchange.formats.drawn import (
    DrawnFrame,
    DrawnMask,
    Sizes,
    drawn_frame,
    frame_name,
    frame_of,
    json_of,
    other_size,
    to_json,
    unusable,
)
from refavs.data.rle import runs_of
from refavs.files.typed_json import Count, OddRecord, shaped

_LENGTH_BITS, _WORD_BITS, _SIZE_BITS = 32, 5, 4
_RUN_BITS = (3, 4, 8, 16)  # a length may be written in as many bits as one of these
_VALUE_BITS, _CHANNELS = 8, 4


class _Task(TypedDict):
    data: dict[str, Any]
    annotations: NotRequired[list[dict[str, Any]]]
    predictions: NotRequired[list[dict[str, Any]]]


class _Value(TypedDict):
    format: str
    rle: list[Count]
    brushlabels: list[str]


class _Region(TypedDict):
    original_width: Count
    original_height: Count
    value: _Value


def write(frames: Iterable[DrawnFrame], export: int) -> Iterator[bytes]:
    """The file in pieces. Frames are read from `frames/` under Label Studio's folder of local files."""
    yield b"["
    for number, frame in enumerate(frames):
        name = frame_name(frame.clip, frame.second)
        regions = [_region(drawn) for drawn in frame.masks if drawn.mask.any()]
        task = {
            "data": {"image": f"/data/local-files/?d=frames/{name}.jpg", "frame": name, "refavs_export": export},
            "predictions": [{"model_version": "refavs-annotate", "result": regions}],
        }
        yield (b"," if number else b"") + b"\n" + to_json(task)
    yield b"\n]\n"


def labels(objects: Iterable[tuple[int, str]]) -> bytes:
    """The labelling interface, for "Code" in the settings of a Label Studio project."""
    values = "".join(f"<Label value={quoteattr(_label(fid, name))}/>" for fid, name in sorted(set(objects)))
    return (f'<View><Image name="image" value="$image" zoom="true" smoothing="false"/><BrushLabels name="mask" '
            f'toName="image">{values}</BrushLabels></View>\n').encode()  # fmt: skip


def _label(fid: int, name: str) -> str:
    return f"{fid} {name}"


def _region(drawn: DrawnMask) -> dict[str, Any]:
    height, width = drawn.mask.shape
    value = {"format": "rle", "rle": list(packed(drawn.mask)), "brushlabels": [_label(drawn.fid, drawn.name)]}
    return {
        "id": f"object{drawn.fid}", "type": "brushlabels", "from_name": "mask", "to_name": "image",
        "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
    }  # fmt: skip


def export_of(path: Path) -> int | None:
    """The number of the export that a file comes from, if it says so."""
    for task in json_of(path, list[_Task]):
        number = task["data"].get("refavs_export")
        return number if type(number) is int else None
    return None


def read(path: Path, sizes: Sizes) -> Iterator[DrawnFrame]:
    """The frames of a file, or of the only `.json` in a ZIP.

    Raises:
        DatasetError: it is no such file.
    """
    for task in json_of(path, list[_Task]):
        yield _frame(task, sizes)


def _frame(task: _Task, sizes: Sizes) -> DrawnFrame:
    name = str(task["data"].get("frame", task["data"].get("image", "")))
    result, author = _newest(task)
    if result is None:
        return unusable(f"frame {name[:80]!r}: the task has no annotation; left as it was")
    clip = (frame_of(name) or ("",))[0]
    return drawn_frame(name, None, sizes, result, lambda region: _drawn(region, sizes[clip]), author)


def _newest(task: _Task) -> tuple[list[Any] | None, str]:
    """The regions of the newest finished annotation, or else of the prediction; and who drew them."""
    done = [one for one in task.get("annotations", []) if one.get("was_cancelled") is not True]
    newest = max(done, key=lambda one: str(one.get("updated_at", "")), default=None)
    if newest is None:
        newest = next(iter(task.get("predictions", [])), {})
        author = ""
    else:
        who = newest.get("completed_by", "")
        author = f"{who.get('email', '') if isinstance(who, dict) else who} {newest.get('updated_at', '')}".strip()
    result = newest.get("result")
    return (result if isinstance(result, list) else None), author[:80]


def _drawn(region: Any, size: tuple[int, int]) -> DrawnMask:
    """One mask; raises ValueError with the reason if it cannot be used."""
    kind = region.get("type") if isinstance(region, dict) else None
    if kind != "brushlabels":
        raise ValueError(f"a region of type {str(kind)[:40]!r} where brush masks were; left out. Draw with the brush")
    try:
        found: _Region = shaped(region, _Region, "the region")
    except OddRecord as error:
        raise ValueError(f"{error}; left out. Export it again as JSON") from None
    value = found["value"]
    label = value["brushlabels"][0] if value["brushlabels"] else ""
    fid, _, name = label.partition(" ")
    if not (fid.isascii() and fid.isdigit() and len(fid) < 10):
        raise ValueError(f"a mask with the label {label[:40]!r}; left out. Give it one of the labels '<fid> <name>'")
    if size != (found["original_height"], found["original_width"]):
        raise ValueError(f"object {fid}: {other_size((found['original_height'], found['original_width']), size)}")
    try:
        if value["format"] != "rle":
            raise ValueError(f"its format is {value['format'][:20]!r}, not 'rle'")
        mask = unpacked(bytes(value["rle"]), *size)
    except ValueError as error:
        raise ValueError(f"the mask of object {fid} is damaged ({error}); left out. Export it again") from None
    return DrawnMask(fid=int(fid), name=name, mask=mask)


def packed(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """The bit stream of a mask."""
    bits = [f"{mask.size * _CHANNELS:0{_LENGTH_BITS}b}", f"{_VALUE_BITS - 1:0{_WORD_BITS}b}"]
    bits += [f"{size - 1:0{_SIZE_BITS}b}" for size in _RUN_BITS]
    for number, run in enumerate(runs_of(mask, "C")):
        left, value = run * _CHANNELS, "1" * _VALUE_BITS if number % 2 else "0" * _VALUE_BITS
        while left:
            length = min(left, 1 << _RUN_BITS[-1])
            index = next(place for place, size in enumerate(_RUN_BITS) if length <= 1 << size)
            bits.append(f"1{index:02b}{length - 1:0{_RUN_BITS[index]}b}{value}")
            left -= length
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return int(stream, 2).to_bytes(len(stream) // 8)


def unpacked(data: bytes, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of a bit stream; raises ValueError if the stream does not fill the picture."""
    bits = _Bits(data)
    length, word = bits.number(_LENGTH_BITS), bits.number(_WORD_BITS) + 1
    sizes = [bits.number(_SIZE_BITS) + 1 for _ in _RUN_BITS]
    wanted = height * width * _CHANNELS
    if length != wanted or word != _VALUE_BITS:
        raise ValueError(f"its stream has {length:,} values of {word} bits, the picture {wanted:,} of 8")
    values = np.zeros(length, np.uint8)
    at = 0
    while at < length:
        is_run = bits.number(1)
        count = bits.number(sizes[bits.number(2)]) + 1
        if at + count > length:
            raise ValueError("its stream is longer than the picture")
        values[at : at + count] = bits.number(_VALUE_BITS) if is_run else bits.values(count)
        at += count
    return values[_CHANNELS - 1 :: _CHANNELS].reshape(height, width) > 0


class _Bits:
    """Reads numbers of any width from bytes."""

    def __init__(self, data: bytes | Sequence[int]) -> None:
        self._bits = np.unpackbits(np.frombuffer(bytes(data), np.uint8))
        self._text = self._bits.tobytes().translate(bytes.maketrans(b"\x00\x01", b"01")).decode("ascii")
        self._at = 0

    def number(self, width: int) -> int:
        return int(self._text[self._take(width) : self._at], 2)

    def values(self, count: int) -> UInt8[np.ndarray, " n"]:
        start = self._take(count * _VALUE_BITS)
        return np.packbits(self._bits[start : self._at])

    def _take(self, width: int) -> int:
        start = self._at
        self._at += width
        if self._at > len(self._text):
            raise ValueError("its stream is cut off")
        return start
