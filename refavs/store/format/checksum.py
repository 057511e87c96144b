"""crc32c of bytes, and of concatenated bytes from the checksums of the parts."""

import warnings
from functools import cache

import numpy as np

from refavs.terminal.printing import warn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # missing C extension; `_warn_if_slow` says more
    import google_crc32c

_POLYNOMIAL = 0x82F63B78  # bit-reflected: the highest bit is the coefficient of x^0


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """Checksum of `data`, continuing from the checksum `start`."""
    _warn_if_slow()
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return google_crc32c.extend(start, data)  # pyright: ignore[reportArgumentType] (arrays are taken without a copy)


def joined(first: int, second: int, second_bytes: int) -> int:
    """Checksum of two concatenated pieces, from their checksums and the length of the second."""
    return _times(_power(second_bytes), first) ^ second


@cache
def _warn_if_slow() -> None:
    """Warns once per process if checksums are computed in Python, which is a thousand times slower."""
    if google_crc32c.implementation != "c":
        warn(
            "refavs: google-crc32c has no C extension here, so the checksum of each clip takes seconds (10 MB/s); "
            "install a wheel that has it: pip install --force-reinstall --only-binary :all: google-crc32c")


@cache
def _power(num_bytes: int) -> int:
    """x^(8 num_bytes) modulo the polynomial: the effect of appending that many bytes on a checksum."""
    power, square = 1 << 31, 1 << 23
    while num_bytes:
        if num_bytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        num_bytes >>= 1
    return power


def _times(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the checksum's."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
