"""Masks on the frames of clips, as label tools exchange them."""

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import Bool

from refavs.errors import DatasetError
from refavs.files.plain_file import UnusableFileError, open_plain, refuse_long
from refavs.files.typed_json import OddRecord, read_json, shaped

MOST_BYTES = 2**28  # of a tool's file; larger projects are exported in parts
Sizes = Mapping[str, tuple[int, int]]  # height and width of each clip's frames
Shape = TypeVar("Shape")


@dataclass(frozen=True, kw_only=True)
class DrawnMask:
    """One mask, or a part of one if a frame has several with the same `fid`."""

    fid: int
    name: str
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class DrawnFrame:
    """One frame and the masks on it; an object without a mask is absent.

    Attributes:
        refused: one line for each mask that cannot be used. What such a frame lacks was not necessarily removed.
        author: who drew the masks and when, if the file says so.
    """

    clip: str
    second: int
    height: int
    width: int
    masks: tuple[DrawnMask, ...] = ()
    refused: tuple[str, ...] = ()
    author: str = ""


def frame_name(clip: str, second: int) -> str:
    """File name of a frame in every tool, without extension."""
    return f"{clip}_{second}"


def frame_of(name: str) -> tuple[str, int] | None:
    """Clip and second of a frame's file name, with or without folders and extension; None for other names."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    stem = stem[:-4] if stem.casefold().endswith(".jpg") else stem
    clip, _, second = stem.rpartition("_")
    return (clip, int(second)) if clip and second.isascii() and second.isdigit() and len(second) < 7 else None


def unusable(line: str) -> DrawnFrame:
    """A part of a file that belongs to no frame."""
    return DrawnFrame(clip="", second=0, height=0, width=0, refused=(line,))


def drawn_frame(
    name: str, size: tuple[int, int] | None, sizes: Sizes, shapes: Iterable[Shape], draw: Callable[[Shape], DrawnMask],
    author: str = "",
) -> DrawnFrame:  # fmt: skip
    """A frame with those of its shapes that are masks.

    Args:
        name: file name of the frame.
        size: height and width that the file gives; None where it gives none.
        draw: makes the mask of a shape, or raises ValueError with the reason why it is left out.
    """
    place = frame_of(name)
    if place is None:
        return unusable(f"frame {name[:80]!r} is not named <clip>_<second>.jpg; left out")
    clip, second = place
    where = f"clip {clip}, second {second}"
    if clip not in sizes:
        return unusable(f"{where}: the project has no clip {clip!r}; left out")
    height, width = sizes[clip]
    if size not in (None, (height, width)):
        return unusable(f"{where}: {other_size(size, sizes[clip])}")
    masks, refused = [], []
    for shape in shapes:
        try:
            masks.append(draw(shape))
        except ValueError as error:
            refused.append(f"{where}: {error}")
    return DrawnFrame(clip=clip, second=second, height=height, width=width, masks=tuple(masks), refused=tuple(refused),
                      author=author)  # fmt: skip


def other_size(found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """Says that a file's (height, width) differs from the frame's."""
    return (f"the file says {found[1]} x {found[0]} pixels, the frame has {wanted[1]} x {wanted[0]}; left out. Make "
            "the tool's task from the exported frames")  # fmt: skip


@contextmanager
def opened(path: Path, suffix: str) -> Iterator[IO[bytes]]:
    """Opens a tool's file, or the only file with the suffix in a ZIP.

    Raises:
        DatasetError: it cannot be read, is too long, or a ZIP holds no such file or several.
    """
    try:
        with open(open_plain(path), "rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0, 2)
                refuse_long(file.tell(), MOST_BYTES, path)
                file.seek(0)
                yield file
                return
            with zipfile.ZipFile(file) as archive:
                members = [item for item in archive.infolist() if item.filename.casefold().endswith(suffix)]
                if len(members) != 1:
                    raise DatasetError(f"{path} holds {len(members)} files *{suffix}, one is expected; name that file "
                                       "itself")  # fmt: skip
                refuse_long(members[0].file_size, MOST_BYTES, path)  # zipfile reads no more than this
                with archive.open(members[0]) as inner:
                    yield inner
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; name what the label tool exported") from None
    except UnusableFileError as error:
        raise DatasetError(f"{path} cannot be read ({error}); export fewer clips at a time") from error
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); export it again") from error


def json_of(path: Path, shape: Any) -> Any:
    """The content of a JSON file of some shape.

    Raises:
        DatasetError: it cannot be read or has another shape.
    """
    with opened(path, ".json") as file:
        data = file.read(MOST_BYTES + 1)
    try:
        return shaped(read_json(data), shape, "the file")
    except OddRecord as error:
        raise DatasetError(f"{path} is not what the tool exports ({error}); export it again") from error


def to_json(value: Any) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
