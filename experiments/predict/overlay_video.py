"""Writes a video with the predicted object filled and outlined, and with its sound."""

from collections.abc import Iterator
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from experiments.training.overlays import PREDICTION, outline
from extract.media.display_matrix import upright
from extract.media.video import open_film

LARGEST_SIDE_PX = 1280
SOUND_HZ = 48_000
FILL = 0.45


def frame_size(video: Path) -> tuple[int, int]:
    """Height and width of a video as shown, px."""
    first = next(_pictures(video, 1))[1]
    return first.shape[0], first.shape[1]


def write_overlay_video(
    path: Path, video: Path, masks: Bool[np.ndarray, "t h w"], sound: Float[np.ndarray, " s"]
) -> None:
    """Writes an .mp4 (H.264, AAC) of the seconds that have a mask; each mask is shown for its whole second.

    Args:
        video: checked before by `extract.media.clip.read_media`, which refuses damaged and endless files.
        masks: at the size of the pictures.
        sound: mono, at `SOUND_HZ`.
    """
    height, width = _even(masks.shape[1:])
    with av.open(f"file:{path}", "w", format="mp4") as container:  # prefixed, as a name may contain a colon
        rate = _rate(video)
        picture = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        picture.pix_fmt, picture.height, picture.width = "yuv420p", height, width
        track = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        last, phase = -1, None
        for time_s, pixels in _pictures(video, len(masks)):
            phase = time_s * rate % 1 if phase is None else phase
            first = rate * floor(time_s)
            number = max(first, min(round(time_s * rate - phase), first + rate - 1))  # within its own second
            if number <= last:  # with a variable rate, two pictures may share a place
                continue
            last = number
            drawn = Image.fromarray(_drawn(pixels, masks[int(time_s)])).resize((width, height))
            frame = av.VideoFrame.from_image(drawn)
            frame.pts = number
            container.mux(picture.encode(frame))
        block = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts = SOUND_HZ, 0
        container.mux(track.encode(block))
        container.mux(picture.encode())
        container.mux(track.encode())


def _pictures(video: Path, num_seconds: int) -> Iterator[tuple[Fraction, UInt8[np.ndarray, "h w 3"]]]:
    """The pictures of the first seconds with their times on the file's clock, resized to the first one.

    As for the encoders, a second in which no picture begins starts with the previous one, and seconds before the first
    picture start with that one.
    """
    with open_film(video) as film:
        second, last = -1, None
        for time_s, frame in film.pictures(num_seconds):
            pixels = upright(frame)
            if last is not None and pixels.shape != last.shape:
                height, width = last.shape[:2]
                pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
            for held in range(second + 1, min(floor(time_s), num_seconds)):
                second = held
                yield Fraction(held), pixels if last is None else last
            if time_s >= num_seconds:
                return
            last = pixels
            if time_s >= 0:
                second = floor(time_s)
                yield time_s, pixels
        if last is not None:
            for held in range(second + 1, num_seconds):
                yield Fraction(held), last


def _rate(video: Path) -> int:
    """Pictures per second of the overlay: the video's rate, at most 60."""
    with open_film(video) as film:
        average = film.tracks.picture.average_rate
    return max(1, min(60, round(average or 25)))


def _even(size: tuple[int, ...]) -> tuple[int, int]:
    """The size of the overlay: the video's, reduced if very large, and even as H.264 requires."""
    scale = min(1.0, LARGEST_SIDE_PX / max(size))
    return max(2, round(size[0] * scale) // 2 * 2), max(2, round(size[1] * scale) // 2 * 2)


def _drawn(pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    filled = pixels.astype(np.float32)
    colour = np.array(PREDICTION, np.float32)
    filled[mask] = (1 - FILL) * filled[mask] + FILL * colour
    filled[outline(mask)] = colour
    return filled.astype(np.uint8)
