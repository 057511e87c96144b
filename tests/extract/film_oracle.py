"""Picture and tone of each second of a video: as read by refavs, and according to ffmpeg's command."""

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 16_000
FFMPEG = shutil.which("ffmpeg")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """By second of the clock.

    Attributes:
        pictures: second of the content that the picture is of.
        tones: the same of the sound; None where it is silent.
    """

    pictures: tuple[int, ...]
    tones: tuple[int | None, ...]


def second_of_grey(grey: float) -> int:
    """Second of the content whose picture is as bright as that."""
    return round((grey - 40) / 10)


def second_of_tone(window: np.ndarray) -> int | None:
    """Second of the content whose tone fills most of a second of sound; None for silence."""
    inner = window[SAMPLE_RATE_HZ // 4 : -SAMPLE_RATE_HZ // 4]
    if len(inner) < SAMPLE_RATE_HZ // 4 or np.abs(inner).max() < 0.02:
        return None
    loudest = np.abs(np.fft.rfft(inner, SAMPLE_RATE_HZ)).argmax()
    return round((float(loudest) - 300) / 100)


def tones_of(sound: np.ndarray, num_seconds: int) -> tuple[int | None, ...]:
    """The tone of each second."""
    seconds = np.zeros(num_seconds * SAMPLE_RATE_HZ, np.float32)
    seconds[: len(sound)] = sound[: len(seconds)]
    return tuple(second_of_tone(window) for window in seconds.reshape(num_seconds, -1))


def centre(pixels: np.ndarray) -> float:
    """Brightness of the middle of a picture, where no corner is."""
    height, width = pixels.shape[0], pixels.shape[1]
    return float(pixels[2 * height // 5 : 3 * height // 5, 2 * width // 5 : 3 * width // 5].mean())


def brightest_quarter(pixels: np.ndarray) -> float:
    """Brightness of the brightest corner, which in the files of the cases has the full level of its second."""
    return max(corner_means(pixels))


def corner_means(pixels: np.ndarray) -> list[float]:
    """Means of the corner thirds: top left and right, bottom left and right."""
    height, width = pixels.shape[0] // 3, pixels.shape[1] // 3
    return [float(part.mean()) for part in (pixels[:height, :width], pixels[:height, -width:],
                                            pixels[-height:, :width], pixels[-height:, -width:])]  # fmt: skip


def marked_corners(pixels: np.ndarray) -> tuple[str, str]:
    """Where the white and the black corner are."""
    height, width = pixels.shape[0] // 6, pixels.shape[1] // 6
    corners = {"TL": pixels[:height, :width], "TR": pixels[:height, -width:], "BL": pixels[-height:, :width],
               "BR": pixels[-height:, -width:]}  # fmt: skip
    means = {name: float(part.mean()) for name, part in corners.items()}
    return max(means, key=means.__getitem__), min(means, key=means.__getitem__)


def by_ffmpeg(
    path: Path, scratch: Path, brightness: Callable[[np.ndarray], float] = centre, *, alone: bool = False,
    num_seconds: int = 10,
) -> tuple[Shown, tuple[str, str]]:
    """Runs ffmpeg's command on a file; what is shown in a second is the first picture that begins in it.

    Args:
        alone: picture and sound are decoded by two runs.
    """
    side = 48
    grey, float32 = scratch / "ffmpeg.gray", scratch / "ffmpeg.f32"
    for left in (grey, float32):
        left.unlink(missing_ok=True)
    pictures = ["-an", "-sn", "-dn", "-vf", f"scale={side}:{side},format=gray,showinfo", "-fps_mode", "passthrough",
                "-f", "rawvideo", str(grey)]  # fmt: skip
    sound = ["-vn", "-sn", "-dn", "-af", "aformat=sample_fmts=flt:channel_layouts=mono:sample_rates=16000,ashowinfo",
             "-f", "f32le", str(float32)]  # fmt: skip
    start = [str(FFMPEG), "-nostdin", "-y", "-v", "info", "-i", str(path)]

    def run(wanted: list[str]) -> str:
        return subprocess.run(start + wanted, capture_output=True, text=True, timeout=120).stderr

    log = run(pictures) + run(sound) if alone else run(pictures + sound)
    if "does not contain any stream" in log:  # the film is silent
        log = run(pictures)
    pixels = np.fromfile(grey, np.uint8).reshape(-1, side, side) if grey.exists() else np.zeros((0, side, side))
    times = [float(time) for time in re.findall(r"Parsed_showinfo_\d+ @ \w+\] n: *\d+ pts: *\S+ pts_time:(\S+)", log)
             if time != "NOPTS"]  # fmt: skip
    seconds = [second_of_grey(brightness(one)) for one in pixels]
    return (
        Shown(pictures=_first_of_each_second(times, seconds, num_seconds), tones=_tones(float32, log, num_seconds)),
        marked_corners(pixels[0]) if len(pixels) else ("", ""),
    )


def _first_of_each_second(times_s: list[float], shown: list[int], num_seconds: int) -> tuple[int, ...]:
    chosen: dict[int, int] = {}
    latest_s, last = -math.inf, None
    for time_s, one in zip(times_s, shown, strict=False):
        if time_s < latest_s:  # as the command leaves it out of a file
            continue
        second = math.floor(time_s + 1e-6)
        chosen.update({k: one if last is None else last for k in range(min(second, num_seconds)) if k not in chosen})
        chosen.setdefault(second, one)
        latest_s, last = time_s, one
    return tuple(chosen.get(second, -1 if last is None else last) for second in range(num_seconds))


def _tones(float32: Path, log: str, num_seconds: int) -> tuple[int | None, ...]:
    placed = np.zeros(num_seconds * SAMPLE_RATE_HZ, np.float32)
    if float32.exists():
        samples, position = np.fromfile(float32, np.float32), 0
        for time_s, number in re.findall(r"ashowinfo_\d+ @ \w+\] n:\d+ pts:\S+ pts_time:(\S+) .*nb_samples:(\d+)", log):
            start = round(float(time_s) * SAMPLE_RATE_HZ)
            part = samples[position : position + int(number)]
            position += int(number)
            first, stop = max(start, 0), min(start + len(part), len(placed))
            if first < stop:
                placed[first:stop] = part[first - start : stop - start]
    return tones_of(placed, num_seconds)
