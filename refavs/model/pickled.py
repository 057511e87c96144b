"""Pickled state dicts, read in the only form that cannot run code, and only where they are as large as their file."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refavs.files.plain_file import open_plain


def load_pickled(path: Path) -> Any:
    """What `torch.save` wrote into `path`.

    Raises:
        ValueError: it is packed, or would take more memory than its file has bytes.
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
    if unpacked > num_bytes:  # views that repeat a few numbers
        raise ValueError(f"its tensors have {unpacked:,} bytes, the file {num_bytes:,}")
    return state


def _refuse_packed(path: Path, num_bytes: int) -> None:
    """torch packs nothing; what is packed says nothing of the memory that it takes."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    unpacked = sum(part.file_size for part in parts)
    if unpacked > num_bytes or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(f"it is packed: {unpacked:,} bytes in a file of {num_bytes:,}; save it again by torch.save")
