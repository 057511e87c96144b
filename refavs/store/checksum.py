"""crc32c of bytes, and of bytes that follow each other from the checksums of both."""

from functools import cache

import google_crc32c
import numpy as np

_POLYNOMIAL = 0x82F63B78  # bit-reflected: the highest bit is the coefficient of x^0


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """Checksum of `data`, going on from `start`."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return google_crc32c.extend(start, data)  # pyright: ignore[reportArgumentType] (arrays are taken without a copy)


def joined(first: int, second: int, second_bytes: int) -> int:
    """Checksum of two pieces, one after the other, from their checksums and the length of the second one."""
    return _times(_power(second_bytes), first) ^ second


@cache
def _power(num_bytes: int) -> int:
    """x^(8 num_bytes) modulo the polynomial: what that many further bytes do to a checksum."""
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
