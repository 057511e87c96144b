"""Draws a mask and a sentence onto the pictures of a video; libav does what is done for each picture."""

import textwrap
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, VideoReformatter
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

from experiments.training.overlays import PREDICTION, outline
from extract.media.display_matrix import DISPLAY_MATRIX, upright

FILL = 0.45  # how opaque the mask is within its outline
DARK = 2 / 3  # how opaque the black strip under the sentence is
LINES = 3
CLOCK = Fraction(1, 90_000)


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
    """What is drawn onto each picture of a video.

    Args:
        like: a picture of the video.
    """

    def __init__(self, sentence: str, like: av.VideoFrame) -> None:
        self._size, self._colorspace = (like.width, like.height), like.colorspace
        self._caption = _caption(sentence, *self._size)
        self._form = {
            "video_size": f"{like.width}x{like.height}", "time_base": str(CLOCK), "pixel_aspect": "1/1",
            "colorspace": str(int(like.colorspace)), "range": str(int(like.color_range)),
        }  # fmt: skip
        self._graph = Graph()

    def set_mask(self, mask: Bool[np.ndarray, "h w"]) -> None:
        """The mask on the pictures that follow, of any size."""
        colours = np.asarray(Image.alpha_composite(_tinted(mask, *self._size), self._caption))
        ink = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(colours, format="rgba"), format="yuva420p", dst_colorspace=self._colorspace
        )
        ink.pts, ink.time_base = 0, CLOCK
        # A graph for each mask: its only ink is complete, so every picture comes out as soon as it is put in.
        self._graph = graph = Graph()
        graph.threads = 1
        self._pictures = graph.add("buffer", pix_fmt="yuv420p", **self._form)
        inks, over = graph.add("buffer", pix_fmt="yuva420p", **self._form), graph.add("overlay", format="yuv420")
        self._drawn = graph.add("buffersink")
        self._pictures.link_to(over, 0, 0)
        inks.link_to(over, 0, 1)
        over.link_to(self._drawn)
        graph.configure()
        inks.push(ink)
        inks.push(None)

    def drawn(self, picture: av.VideoFrame) -> av.VideoFrame:
        """A copy of a picture, whose time is on `CLOCK`, with the mask and the sentence."""
        self._pictures.push(picture)
        drawn = self._drawn.pull()
        assert isinstance(drawn, av.VideoFrame)
        drawn.pict_type = PictureType.NONE  # chosen by the encoder, not as in the source
        return drawn


def _tinted(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> Image.Image:
    """The mask at another size, filled and outlined, with nothing around it."""
    whole = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    ink = np.empty((height, width, 4), np.uint8)
    ink[..., :3] = PREDICTION  # around it too, as colour is stored for every other pixel
    ink[..., 3] = np.where(outline(whole), 255, round(255 * FILL) * whole)
    return Image.fromarray(ink)


def _caption(sentence: str, width: int, height: int) -> Image.Image:
    """The sentence in a few lines, white on a dark strip at the bottom; no strip for an empty one."""
    whole = Image.new("RGBA", (width, height))
    size_px = max(10, width // 45)
    letters = max(8, int(1.8 * width / size_px))
    lines = textwrap.wrap(" ".join(sentence.split()), letters, max_lines=LINES, placeholder=" ...")
    if not lines:
        return whole
    strip = Image.new("RGBA", (width, round(1.35 * size_px * len(lines)) + size_px // 2), (0, 0, 0, round(255 * DARK)))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=size_px)
    for number, line in enumerate(lines):
        pen.text((size_px // 2, round(1.35 * size_px * number)), line, fill="white", font=font)
    whole.paste(strip, (0, max(0, height - strip.height)))
    return whole
