"""State files that let a trial resume after a kill: model, optimiser and history, written atomically."""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from experiments.records.record_types import read_record, write_json
from refavs.errors import ConfigError
from refavs.files.atomic import sync_folder, write_atomically

PREFIX = "epoch-"
OWNER = "owner.txt"


class SupersededError(ConfigError):
    """Another process has resumed the trial."""


class Claim:
    """The right of one process to write into a trial's folder; it ends when another process resumes the trial.

    A host that is cut off goes on training, and may still reach the disk, while its trials are resumed elsewhere.

    Args:
        writes: False for workers that do not write, which claim nothing.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self._file, self._token = folder / OWNER, secrets.token_hex(8).encode() if writes else b""
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, self._token)

    def check(self) -> None:
        """Call it before each write.

        Raises:
            SupersededError: another process has resumed the trial.
        """
        if self._token and self._file.read_bytes() != self._token:
            raise SupersededError(f"another process has resumed the trial in {self._file.parent}, so this one stops")


class Stateful(Protocol):
    """An object whose state consists of tensors by part and name, and of facts that fit into JSON."""

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]: ...

    def load_state(self, tensors: Mapping[str, dict[str, Tensor]], facts: Mapping[str, Any]) -> None: ...


def save_state(folder: Path, subject: Stateful, epoch: int, history: list[dict[str, Any]]) -> None:
    """Writes the state after `epoch` finished epochs, then removes older states."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{PREFIX}{epoch:06d}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors, facts = subject.state()
    try:
        for name, part in tensors.items():
            plain = {key: value.detach().contiguous() for key, value in part.items()}
            write_atomically(partial / f"{name}.safetensors", save(plain))
        facts = {"epoch": epoch, "parts": sorted(tensors), "facts": facts, "history": history}
        write_json(partial / "state.json", facts)
    except OSError:  # on a full disk, others need the space
        shutil.rmtree(partial, ignore_errors=True)
        raise
    whole = folder / f"{PREFIX}{epoch:06d}"
    if whole.is_dir():
        shutil.rmtree(partial)
    else:
        partial.rename(whole)
    sync_folder(folder)
    for other in [*folder.glob(".*.partial"), *(path for path in folder.glob(f"{PREFIX}*") if path.name < whole.name)]:
        shutil.rmtree(other, ignore_errors=True)


def saved_precision(folder: Path) -> str | None:
    """The precision that the trial with states in `folder` has used so far; None for a new trial."""
    for newest in sorted(folder.glob(f"{PREFIX}*"))[-1:]:
        facts = (read_record(newest / "state.json") or {}).get("facts")
        return facts.get("precision") if isinstance(facts, dict) else None
    return None


def load_state(folder: Path, subject: Stateful) -> tuple[int, list[dict[str, Any]]]:
    """Restores the newest state; returns the number of finished epochs and their history (0 and empty without one).

    Raises:
        ConfigError: the state cannot be read or belongs to another model.
    """
    saved = sorted(folder.glob(f"{PREFIX}*"))
    if not saved:
        return 0, []
    newest = saved[-1]
    try:
        facts = read_record(newest / "state.json") or {}
        subject.load_state({name: load_file(newest / f"{name}.safetensors") for name in facts["parts"]}, facts["facts"])
        return facts["epoch"], facts["history"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ConfigError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{newest} cannot be read ({reason}); remove {folder} to start this trial again") from error
