"""Files of a source opened as what they must be: plain, inside their folder, pictures of a bounded size.

A source comes from a download or an archive, so a name in it may be anything: a pipe that never answers, a link to
another place, a picture that would fill the memory.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from refavs.files.plain_file import UnusableFileError, open_plain, refuse_special

# A frame of 8K video has 33 million pixels.
MOST_PIXELS = 40_000_000
PICTURE_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError)
_PLUGINS = {b"\xff\xd8\xff": JpegImageFile, b"\x89PN": PngImageFile}


def reason_of(error: BaseException) -> str:
    """Why a file could not be read, on one line and without its name where the system gave the reason."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def check_file(path: Path, within: Path | None = None) -> None:
    """Looks at what a name stands for, without opening it: opening a pipe waits for someone to write.

    Args:
        path: the file.
        within: folder that the file may not lie outside of, symbolic links followed; None where it may lie anywhere.

    Raises:
        FileNotFoundError: there is nothing of that name.
        UnusableFileError: a folder, pipe, socket, device, empty file, or a symbolic link that leads nowhere or out.
        OSError: the system does not let us look.
    """
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise UnusableFileError(f"it is a symbolic link to nothing: {os.readlink(path)}") from None
        raise
    refuse_special(facts)
    if within is not None:
        place = path.resolve()
        if not place.is_relative_to(within.resolve()):
            raise UnusableFileError(f"a symbolic link leads out of {within} to {place}")
    if not facts.st_size:
        raise UnusableFileError("the file is empty (0 bytes)")


def open_file(path: Path, within: Path | None = None) -> io.BufferedReader:
    """Opens a plain file for reading, as `check_file` demands.

    Raises:
        FileNotFoundError, UnusableFileError, OSError: as of `check_file`.
    """
    check_file(path, within)
    return open(open_plain(path), "rb")


@contextmanager
def open_picture(path: Path, within: Path | None = None, *, lossless: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Opens a JPEG or PNG picture by its content, whatever its name; its pixels are decoded when first asked for.

    Other formats are not tried: Pillow would run a program for some of them.

    Args:
        path: the picture.
        within: as of `check_file`.
        lossless: accept PNG only.

    Raises:
        FileNotFoundError: there is nothing of that name.
        UnusableFileError: no such picture, or one of more than `MOST_PIXELS`, found before its pixels take memory.
        UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError: it cannot be read (`PICTURE_ERRORS`).
    """
    with open_file(path, within) as file:
        start = file.read(3)
        file.seek(0)
        plugin = _PLUGINS.get(start)
        if plugin is None:
            raise UnusableFileError("its content is neither JPEG nor PNG")
        if lossless and plugin is JpegImageFile:
            raise UnusableFileError("its content is JPEG, which blurs edges")
        # Not Image.open, which warns of sizes between one and two of its own limits and so prints a line of its own.
        with plugin(file) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise UnusableFileError(f"it declares {width}x{height} pixels; accepted: up to {MOST_PIXELS:,} pixels")
            yield picture
