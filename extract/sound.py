"""Sound as the audio encoder takes it: mono at 16 kHz, finite, of a bounded loudness; from a WAV file or a track."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from refavs.data.files import UnusableFileError, open_file, reason_of
from refavs.errors import DatasetError

SAMPLE_RATE_HZ = 16_000
# Beyond these no recording is known, and a header's lie would fill the memory.
RATES_HZ = (1_000, 192_000)
# Full scale is 1; a float recording may exceed it, one of unscaled integers is no sound that the encoder knows.
LOUDEST = 16.0
_BLOCK_VALUES = 1 << 20


def read_wave(path: Path, num_seconds: int, within: Path | None = None) -> Float[np.ndarray, " s"] | None:
    """The first seconds of a sound file, the mean of its channels; None where there is no such file.

    Raises:
        DatasetError: the file cannot be read, or not as sound.
    """
    import soundfile

    try:
        with open_file(path, within) as raw, soundfile.SoundFile(raw) as file:
            refuse_rate(file.samplerate)
            # Block by block, so that many channels do not lie in memory at once.
            blocks = file.blocks(
                blocksize=max(1, _BLOCK_VALUES // file.channels), frames=num_seconds * file.samplerate,
                dtype="float32", always_2d=True,
            )
            with np.errstate(invalid="ignore", over="ignore"):  # what is no number is found below
                mono = [block.mean(axis=1) for block in blocks]
            samples = np.concatenate(mono) if mono else np.zeros(0, np.float32)
            return at_sample_rate(samples, file.samplerate)
    except FileNotFoundError:
        return None
    except DatasetError as error:
        raise DatasetError(f"sound {path}: {error}; encode it again") from error
    except (soundfile.SoundFileError, UnusableFileError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "error_string", "") or reason_of(error)  # libsndfile's own, without our file's repr
        raise DatasetError(f"sound {path} cannot be read ({reason}); accepted: a WAV file of any rate from "
                           f"{RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz") from error  # fmt: skip


def refuse_rate(rate_hz: int) -> None:
    """Raises DatasetError where no sound has such a sample rate."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise DatasetError(f"its sound has {rate_hz:,} samples/s; accepted: {RATES_HZ[0]:,} to {RATES_HZ[1]:,}")


def at_sample_rate(samples: Float[np.ndarray, " s"], rate_hz: int) -> Float[np.ndarray, " r"]:
    """The samples at 16 kHz.

    Raises:
        DatasetError: samples that are not numbers, or far beyond full scale.
    """
    from scipy.signal import resample_poly

    if not np.isfinite(samples).all():
        raise DatasetError("its sound holds values that are not numbers (NaN or infinite)")
    loudest = float(np.abs(samples).max(initial=0.0))
    if loudest > LOUDEST:
        raise DatasetError(f"its sound has values up to {loudest:.3g}; accepted: at most {LOUDEST:g}, full scale is 1")
    if rate_hz == SAMPLE_RATE_HZ or not len(samples):
        return samples
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return resample_poly(samples, SAMPLE_RATE_HZ // common, rate_hz // common).astype(np.float32)
