"""Safe reading of pickled state dicts: no code is run, and tensors larger than the file are rejected."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refavs.files.plain_file import open_plain


def load_pickled(path: Path) -> Any:
    """Loads what `torch.save` wrote to `path`.

    Raises:
        ValueError: it is compressed, or needs more memory than the file has bytes.
        OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError: as of `torch.load`.
    """
    file = open_plain(path)
    num_bytes = os.fstat(file).st_size
    os.close(file)
    if zipfile.is_zipfile(path):
        _refuse_packed(path, num_bytes)
    state = torch.load(path, map_location="cpu", weights_only=True)
    tensors = state.values() if isinstance(state, dict) else ()
    unpacked = sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor))
    if unpacked > num_bytes:  # expanded views of small tensors
        raise ValueError(f"its tensors need {unpacked:,} bytes, but the file has {num_bytes:,}")
    return state


def _refuse_packed(path: Path, num_bytes: int) -> None:
    """Rejects compressed archives, whose size says nothing about memory; torch does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    unpacked = sum(part.file_size for part in parts)
    if unpacked > num_bytes or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(f"it is compressed: {unpacked:,} bytes in a file of {num_bytes:,}; save it with torch.save")
