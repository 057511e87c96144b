"""Draws a mask and a sentence onto the pictures of a video as they are stored: brightness and two of colour (4:2:0)."""

import textwrap
from dataclasses import dataclass

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, VideoReformatter
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image, ImageDraw, ImageFont

from experiments.training.overlays import PREDICTION, outline
from extract.media.display_matrix import DISPLAY_MATRIX, upright

FILL = 0.45
LINES = 3
BLACK, WHITE, GREY = 16, 235, 128  # brightness, and colour without any
DARK = 2 / 3  # how far the strip under the sentence goes to black


class Converter:
    """Pictures of any form and size to one form and size, as a player shows them."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size, self._reformatter = size, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The picture at the size, with 8 bits, turned upright."""
        if frame.side_data.get(DISPLAY_MATRIX) is not None:
            frame = av.VideoFrame.from_ndarray(upright(frame), format="rgb24")
        height, width = self._size
        as_is = frame.format.name == "yuv420p" and (frame.height, frame.width) == self._size
        if as_is and frame.color_range != ColorRange.JPEG:
            return frame
        return self._reformatter.reformat(frame, width, height, "yuv420p", src_color_range=frame.color_range,
                                          dst_color_range=ColorRange.MPEG)  # fmt: skip


class Sketch:
    """What is drawn onto each picture of a video."""

    def __init__(self, sentence: str, like: av.VideoFrame) -> None:
        self._size = like.height, like.width
        colour = np.full((2, 2, 3), PREDICTION, np.uint8)
        self._colour = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(colour, format="rgb24"), format="yuv420p", dst_colorspace=like.colorspace
        ).to_ndarray().ravel()[[0, 4, 5]].tolist()  # fmt: skip
        self._caption, self._mask = _caption_inks(sentence, *self._size), [[], [], []]

    def set_mask(self, mask: Bool[np.ndarray, "h w"]) -> None:
        """The mask on the pictures that follow, of any size."""
        height, width = self._size
        whole = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        self._mask = _mask_inks(whole, self._colour)

    def drawn(self, picture: av.VideoFrame) -> av.VideoFrame:
        """A copy of a picture with the mask filled and outlined, and the sentence in white on a darkened strip."""
        copy = av.VideoFrame(picture.width, picture.height, "yuv420p")
        for plane, source, mask, caption in zip(copy.planes, picture.planes, self._mask, self._caption, strict=True):
            pixels = _pixels_of(plane)
            pixels[:] = _pixels_of(source)
            for ink in (*mask, *caption):
                ink.mix(pixels)
        return copy


@dataclass(frozen=True, eq=False)
class _Ink:
    """What is drawn onto a part of a plane, in 256ths: a share of the value there is kept, and another is added."""

    top: int
    left: int
    kept: UInt16[np.ndarray, "h w"]
    added: UInt16[np.ndarray, "h w"]

    @classmethod
    def covering(cls, top: int, left: int, cover: Float[np.ndarray, "h w"], value: int) -> "_Ink":
        """The ink that covers a part from not at all, 0, to wholly, 1, with a value of 0..255."""
        kept = np.rint(256 * (1 - cover)).astype(np.uint16)
        return cls(top, left, kept, (256 - kept) * value + 127)  # rounded to the nearest

    def mix(self, pixels: UInt8[np.ndarray, "h w"]) -> None:
        height, width = self.kept.shape
        part = pixels[self.top : self.top + height, self.left : self.left + width]
        mixed = part * self.kept
        mixed += self.added
        mixed >>= 8
        part[:] = mixed


def _pixels_of(plane: VideoPlane) -> UInt8[np.ndarray, "h w"]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _mask_inks(mask: Bool[np.ndarray, "h w"], colour: list[int]) -> list[list[_Ink]]:
    """What draws a mask onto each of the three planes."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [[], [], []]
    top, left = rows[0] // 2 * 2, columns[0] // 2 * 2
    part = mask[top : rows[-1] // 2 * 2 + 2, left : columns[-1] // 2 * 2 + 2]
    cover = np.where(outline(part), 1.0, FILL * part)
    halved = cover.reshape(len(cover) // 2, 2, -1, 2).max((1, 3))
    return [[_Ink.covering(top, left, cover, colour[0])],
            *([_Ink.covering(top // 2, left // 2, halved, value)] for value in colour[1:])]  # fmt: skip


def _caption_inks(sentence: str, height: int, width: int) -> list[list[_Ink]]:
    """What draws a sentence onto the bottom of each of the three planes."""
    letters = _caption(sentence, width)
    rows = min(len(letters), height) // 2 * 2
    dark, top = np.full((rows, width), DARK), height - rows
    bright = [_Ink.covering(top, 0, dark, BLACK), _Ink.covering(top, 0, letters[:rows] / 255, WHITE)]
    grey = [_Ink.covering(top // 2, 0, dark[::2, ::2], GREY)]
    return [bright, grey, grey]


def _caption(sentence: str, width: int) -> UInt8[np.ndarray, "h w"]:
    """The sentence in a few lines, white letters on black; no line for an empty one."""
    size_px = max(10, width // 45)
    font = ImageFont.load_default(size=size_px)
    letters = max(8, int(1.8 * width / size_px))
    lines = textwrap.wrap(" ".join(sentence.split()), letters, max_lines=LINES, placeholder=" ...")
    if not lines:
        return np.zeros((0, width), np.uint8)
    strip = Image.new("L", (width, round(1.35 * size_px * len(lines)) + size_px // 2))
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((size_px // 2, round(1.35 * size_px * number)), line, fill=255, font=font)
    return np.asarray(strip)
