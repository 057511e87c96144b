"""Draws a mask and a sentence onto the pictures of a video as they are stored: brightness and two of colour (4:2:0)."""

import textwrap

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from experiments.training.overlays import PREDICTION, outline
from extract.media.display_matrix import DISPLAY_MATRIX, upright

FILL = 0.45
LINES = 3
BLACK, WHITE, GREY = 16, 235, 128  # brightness, and colour without any
# The rows of a picture's brightness, and below them those of its two colours, of a quarter of its size each.
Planes = UInt8[np.ndarray, "rows w"]


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
        self._size = height, width = like.height, like.width
        self._caption = _caption(sentence, width)[:height]
        colour = np.full((2, 2, 3), PREDICTION, np.uint8)
        self._colour = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(colour, format="rgb24"), format="yuv420p", dst_colorspace=like.colorspace
        ).to_ndarray().ravel()[[0, 4, 5]]
        values = np.arange(256)
        self._tint = [((1 - FILL) * values + FILL * int(part)).astype(np.uint8) for part in self._colour]
        self._dark = [(grey + (values - grey) / 3).clip(0, 255).astype(np.uint8) for grey in (BLACK, GREY)]
        self._filled = self._edge = [np.zeros(0, np.intp)] * 3

    def set_mask(self, mask: Bool[np.ndarray, "h w"]) -> None:
        """The mask on the pictures that follow, of any size."""
        height, width = self._size
        whole = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        self._filled, self._edge = _places(whole), _places(outline(whole))

    def drawn(self, planes: Planes) -> Planes:
        """A copy of a picture with the mask filled and outlined, and the sentence in white on a darkened strip."""
        (height, width), image = self._size, planes.copy()
        pixels = image.ravel()
        for filled, edge, tint, part in zip(self._filled, self._edge, self._tint, self._colour, strict=True):
            pixels[filled] = tint[pixels[filled]]
            pixels[edge] = part
        rows = len(self._caption) // 2 * 2
        if rows:
            strip = image[height - rows : height]
            strip[:] = np.maximum(self._dark[0][strip], self._caption[-rows:])
            for part in pixels[height * width :].reshape(2, height // 2, width // 2):
                part[-rows // 2 :] = self._dark[1][part[-rows // 2 :]]
        return image


def _places(mask: Bool[np.ndarray, "h w"]) -> list[np.ndarray]:
    """Where a mask lies in each of the three planes, counted in their values in a row."""
    height, width = mask.shape
    coloured = np.flatnonzero(mask.reshape(height // 2, 2, width // 2, 2).any((1, 3)))
    return [np.flatnonzero(mask), height * width + coloured, height * width * 5 // 4 + coloured]


def _caption(sentence: str, width: int) -> UInt8[np.ndarray, "h w"]:
    """The brightness of the sentence, white letters on black, in a few lines."""
    size_px = max(10, width // 45)
    font = ImageFont.load_default(size=size_px)
    letters = max(8, int(1.8 * width / size_px))
    lines = textwrap.wrap(" ".join(sentence.split()), letters, max_lines=LINES, placeholder=" ...")
    if not lines:
        return np.zeros((0, width), np.uint8)
    strip = Image.new("L", (width, round(1.35 * size_px * len(lines)) + size_px // 2), BLACK)
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((size_px // 2, round(1.35 * size_px * number)), line, fill=WHITE, font=font)
    return np.asarray(strip)
