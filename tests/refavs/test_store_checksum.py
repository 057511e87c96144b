"""Checksums of pieces give that of the whole."""

import os
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refavs.store.format.checksum import crc32c, joined


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_joined_checksum_is_that_of_both(first: bytes, second: bytes) -> None:
    assert joined(crc32c(first), crc32c(second), len(second)) == google_crc32c.value(first + second)


def test_joined_checksum_of_long_pieces() -> None:
    data = np.random.default_rng(0).integers(0, 256, 5_000_001, dtype=np.uint8)
    for cut in (0, 1, 63, 2_500_000, 5_000_000, 5_000_001):
        whole = joined(crc32c(data[:cut]), crc32c(data[cut:]), data.size - cut)
        assert whole == crc32c(data) == google_crc32c.value(data.tobytes())


def test_checksum_takes_any_array_and_goes_on() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert crc32c(values) == google_crc32c.value(values.tobytes())
    assert crc32c(values[1], crc32c(values[0])) == crc32c(values)


@pytest.mark.process
def test_checksums_by_python_are_right_and_said_to_be_slow_once() -> None:
    program = (
        "import sys; sys.modules['google_crc32c.cext'] = None\n"  # as where the wheel has no C extension
        "import numpy as np; from refavs.store.format.checksum import crc32c\n"
        "print(crc32c(np.arange(10, dtype=np.uint8)), crc32c(b'123456789'))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    assert done.stdout.split() == [str(crc32c(np.arange(10, dtype=np.uint8))), str(0xE3069283)], done.stderr
    assert done.stderr.count("\n") == 1 and "has no C extension" in done.stderr and "pip install" in done.stderr
