"""Sound as encoders take it: mono at their sample rates, finite and not too loud; from a WAV file or a track."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from extract.media.wav_length import by_its_samples
from refavs.errors import DatasetError
from refavs.files.plain_file import UnusableFileError
from refavs.files.source_files import open_file, reason_of

# Beyond these no recording is known, and a header's lie would fill the memory.
RATES_HZ = (1_000, 192_000)
# Full scale is 1; a float recording may exceed it, one of unscaled integers is no sound that the encoder knows.
LOUDEST = 16.0
# As much silence as nobody takes for the end of a sentence is noted.
MISSING_SOUND_S = 0.5
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wave:
    """The first seconds of a sound file.

    Attributes:
        samples: the mean of its channels, by sample rate.
        notes: what is odd about it, names of `extract.media.notes.NOTES`.
    """

    samples: Mapping[int, Float[np.ndarray, " s"]]
    notes: tuple[str, ...]


def read_wave(
    path: Path, num_seconds: int, rates_hz: Collection[int], within: Path | None = None
) -> Wave | None:
    """Reads a sound file as far as it has samples, whatever length it declares; None where there is no such file.

    Args:
        rates_hz: sample rates in which it is wanted.
        within: folder that the file may not lie outside of.

    Raises:
        DatasetError: the file cannot be read, or not as sound.
    """
    try:
        with open_file(path, within) as raw:
            whole, is_false = by_its_samples(raw)
            with soundfile.SoundFile(whole) as file:
                refuse_rate(file.samplerate)
                samples = _mono(file, num_seconds * file.samplerate)
                is_short = len(samples) < (num_seconds - MISSING_SOUND_S) * file.samplerate
                notes = ["length_false"] * is_false + ["sound_short"] * is_short
                given_hz = file.samplerate
            wanted = {rate_hz: at_sample_rate(samples, given_hz, rate_hz) for rate_hz in rates_hz}
            return Wave(samples=wanted, notes=tuple(notes))
    except FileNotFoundError:
        return None
    except DatasetError as error:
        raise DatasetError(f"sound {path}: {error}; encode it again") from error
    except (soundfile.SoundFileError, UnusableFileError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "error_string", "") or reason_of(error)  # libsndfile's own, without our file's repr
        raise DatasetError(f"sound {path} cannot be read ({reason}); accepted: a WAV file of any rate from "
                           f"{RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz") from error  # fmt: skip


def _mono(file: soundfile.SoundFile, num_samples: int) -> Float[np.ndarray, " s"]:
    """The mean of the channels, block by block, so that many of them do not lie in memory at once."""
    blocks = file.blocks(
        blocksize=max(1, _BLOCK_VALUES // file.channels), frames=num_samples, dtype="float32", always_2d=True
    )
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number is found afterwards
        mono = [block.mean(axis=1) for block in blocks]
    return np.concatenate(mono) if mono else np.zeros(0, np.float32)


def refuse_rate(rate_hz: int) -> None:
    """Raises DatasetError where no sound has such a sample rate."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise DatasetError(f"its sound has {rate_hz:,} samples/s; accepted: {RATES_HZ[0]:,} to {RATES_HZ[1]:,}")


def at_sample_rate(samples: Float[np.ndarray, " s"], rate_hz: int, wanted_hz: int) -> Float[np.ndarray, " r"]:
    """The samples at another rate.

    Raises:
        DatasetError: samples that are not numbers, or far beyond full scale.
    """
    from scipy.signal import resample_poly

    if not np.isfinite(samples).all():
        raise DatasetError("its sound holds values that are not numbers (NaN or infinite)")
    loudest = float(np.abs(samples).max(initial=0.0))
    if loudest > LOUDEST:
        raise DatasetError(f"its sound has values up to {loudest:.3g}; accepted: at most {LOUDEST:g}, full scale is 1")
    if rate_hz == wanted_hz or not len(samples):
        return samples
    common = math.gcd(rate_hz, wanted_hz)
    return resample_poly(samples, wanted_hz // common, rate_hz // common).astype(np.float32)
