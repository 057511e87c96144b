"""Opens files of a source: plain files inside its folder, and pictures of bounded size.

A source comes from a download or an archive, so any name may turn out to be a pipe that blocks, a link out of the
folder or a picture that fills the memory.
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
    """Why a file could not be read, on one line; the system's own reason comes without the file's name."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def check_file(path: Path, within: Path | None = None) -> None:
    """Checks a file without opening it, since opening a pipe would block.

    Args:
        path: the file.
        within: folder that must contain the file once symbolic links are followed; None accepts any place.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableFileError: a folder, pipe, socket, device, empty file, or a symbolic link that is broken or leads out.
        OSError: the file cannot be examined.
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
    """Opens a file for reading after `check_file`, and raises what that raises."""
    check_file(path, within)
    return open(open_plain(path), "rb")


@contextmanager
def open_picture(path: Path, within: Path | None = None, *, lossless: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Opens a JPEG or PNG picture, recognised by its content; pixels are decoded on first use.

    Other formats are not tried, as Pillow runs external programs for some of them.

    Args:
        path: the picture.
        within: see `check_file`.
        lossless: accept PNG only.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableFileError: another format, or more than `MOST_PIXELS` pixels; found before any pixel takes memory.
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
        # Image.open would print a warning of its own for large pictures.
        with plugin(file) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise UnusableFileError(f"it declares {width}x{height} pixels; accepted: up to {MOST_PIXELS:,} pixels")
            yield picture
