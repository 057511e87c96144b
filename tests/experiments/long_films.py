"""Long films of known content, written picture by picture: flashes with beeps, and two objects that sound in turn."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8

from refavs.synthetic.scene import make_scene, render
from refavs.synthetic.voices import VOICES

BEEP_S = 0.1
Frames = Iterator[UInt8[np.ndarray, "h w 3"]]


def write_film(
    path: Path, frames: Frames, rate: Fraction, sound: Iterator[Float[np.ndarray, " s"]], rate_hz: int
) -> Path:
    """Writes pictures at a rate and the sound second by second, as both come."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "threads": "1"})
        track = container.add_stream("aac", rate=rate_hz, layout="mono")
        heard, number = 0, 0
        for number, pixels in enumerate(frames):
            if number == 0:
                picture.pix_fmt, picture.height, picture.width = "yuv420p", *pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
            if number / rate >= Fraction(heard, rate_hz) and (samples := next(sound, None)) is not None:
                block = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate_hz, heard, Fraction(1, rate_hz)
                heard += len(samples)
                container.mux(track.encode(block))
        container.mux(picture.encode())
        container.mux(track.encode())
    return path


def write_blinking_film(
    path: Path, length_s: int, size: tuple[int, int], rate: Fraction = Fraction(30_000, 1001), rate_hz: int = 44_100
) -> Path:
    """A film whose first picture of each fifth second is white, with a beep that begins with it."""
    pattern = np.random.default_rng(0).integers(30, 90, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    dark = np.kron(pattern, np.ones((8, 8, 1), np.uint8))
    starts = [Fraction(np.ceil(second * rate)) / rate for second in range(0, length_s, 5)]

    def frames() -> Frames:
        for number in range(int(length_s * rate)):
            yield np.full_like(dark, 255) if number / rate in starts else np.roll(dark, number % 16, axis=1)

    def sound() -> Iterator[Float[np.ndarray, " s"]]:
        for second in range(length_s):
            times_s = second + np.arange(rate_hz) / rate_hz
            beeps = [(start <= times_s) & (times_s < float(start) + BEEP_S) for start in map(float, starts)]
            yield 0.5 * np.sin(2 * np.pi * 1000 * times_s + 1.5) * np.any(beeps, axis=0)

    return write_film(path, frames(), rate, sound(), rate_hz)


def greatest_shift_s(overlay: Path) -> float:
    """How far a beep is from its flash at most, in a film of `write_blinking_film`."""
    flashes, beeps, lit, loud_until = [], [], False, -1.0
    with av.open(str(overlay)) as container:
        for frame in container.decode(video=0):
            bright = frame.to_ndarray(format="gray")[:8].mean() > 128
            if bright and not lit:
                flashes.append(float(frame.time or 0))
            lit = bright
    with av.open(str(overlay)) as container:
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray()[0])
            for place in np.flatnonzero(samples > 0.1).tolist():
                time_s = float(frame.time or 0) + place / frame.sample_rate
                if time_s > loud_until + 2 * BEEP_S:
                    beeps.append(time_s)
                loud_until = time_s
    assert len(flashes) == len(beeps) > 0, (len(flashes), len(beeps))
    return max(abs(flash - beep) for flash, beep in zip(flashes, beeps, strict=True))


def two_voices(
    path: Path, seed: int, length_s: int = 90, change_s: int = 45
) -> tuple[Path, Bool[np.ndarray, "t h w"]]:
    """A film of two objects, of which the first sounds and then the second; the sounding one's mask by second."""
    rng = np.random.default_rng(seed)
    categories = rng.choice(["disc", "square", "triangle", "star"], 2, replace=False).tolist()
    scene, rate, rate_hz = make_scene(rng, 96, categories), Fraction(10), 16_000

    def moment(time_s: float) -> float:
        """The objects go to the end of their paths of 10 s and back."""
        return 10 - abs(time_s % 20 - 10)

    def frames() -> Frames:
        for number in range(int(length_s * rate)):
            yield render(scene, moment(number / 10))[0]

    def sound() -> Iterator[Float[np.ndarray, " s"]]:
        for second in range(length_s):
            wave = VOICES[categories[second >= change_s]](second + np.arange(rate_hz) / rate_hz, 1.0, rng)
            yield 0.13 * wave / np.sqrt(np.mean(wave**2))

    write_film(path, frames(), rate, sound(), rate_hz)
    return path, np.stack([render(scene, moment(second))[1][int(second >= change_s)] for second in range(length_s)])
