"""State files that let a trial resume after a kill: model, optimiser and history, written atomically."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from experiments.records.record_types import read_record, write_json
from experiments.training.history import write_history
from refavs.errors import ConfigError
from refavs.files.atomic import sync_folder, write_atomically

STATE, HISTORY = "state", "metrics.jsonl"  # in a trial's folder
PREFIX = "epoch-"
CLAIM = ".claim-"
HELD = "held"


class SupersededError(ConfigError):
    """Another process has resumed the trial."""


class Claim:
    """The right of one process to write into a trial's folder; it ends when another process claims the trial.

    A host that is cut off goes on training, and may still reach the disk, while its trials are resumed elsewhere. So
    everything is written into the claim's own folder first, and is published by a rename. A new claim moves the older
    one's folder away, which is atomic too: a process that has lost its trial has nothing left to publish.

    Args:
        trial: the trial's folder.
        writes: False for workers that do not write, which claim nothing.

    Attributes:
        folder: receives what is to be published.
    """

    def __init__(self, trial: Path, writes: bool = True) -> None:
        self.trial, self.folder = trial, trial / f"{CLAIM}{secrets.token_hex(8)}"
        if not writes:
            return
        self.folder.mkdir(parents=True)
        # A writer that has lost its claim may recreate the folder, but never this mark.
        (self.folder / HELD).touch()
        for older in trial.glob(f"{CLAIM}*"):
            if older != self.folder:
                with contextlib.suppress(FileNotFoundError):  # another process claims the trial at this moment
                    os.rename(older, self.folder / older.name)
                shutil.rmtree(self.folder / older.name, ignore_errors=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Context for writing into the claim's folder.

        Raises:
            SupersededError: another process has claimed the trial.
        """
        try:
            yield
        except OSError:  # a call whose folder has just been moved away may fail in several ways
            self._check()
            raise

    def publish(self, *names: str) -> None:
        """Moves files and folders of the claim, as far as they exist, to the same names in the trial's folder.

        Raises:
            SupersededError: another process has claimed the trial.
        """
        with self.held():
            for name in names:
                self._check()
                source, place = self.folder / name, self.trial / name
                if not source.exists():
                    continue
                place.parent.mkdir(exist_ok=True)
                if place.exists() and (place.is_dir() or source.is_dir()):  # which no rename replaces
                    replaced = self.folder / f"replaced-{secrets.token_hex(4)}"
                    os.rename(place, replaced)
                    shutil.rmtree(replaced, ignore_errors=True)
                os.rename(source, place)
                sync_folder(place.parent)
        self._check()

    def _check(self) -> None:
        if not (self.folder / HELD).exists():
            shutil.rmtree(self.folder, ignore_errors=True)  # recreated by a writer
            raise SupersededError(f"another process has resumed the trial in {self.trial}, so this one stops")

    def release(self) -> None:
        """Ends the claim, once everything is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Stateful(Protocol):
    """An object whose state consists of tensors by part and name, and of facts that fit into JSON."""

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]: ...

    def load_state(self, tensors: Mapping[str, dict[str, Tensor]], facts: Mapping[str, Any]) -> None: ...


def save_state(claim: Claim, subject: Stateful, epoch: int, history: list[dict[str, Any]]) -> None:
    """Writes the state after `epoch` finished epochs, then removes older states.

    Raises:
        SupersededError: another process has claimed the trial.
    """
    name = f"{STATE}/{PREFIX}{epoch:06d}"
    new = claim.folder / name
    tensors, facts = subject.state()
    facts = {"epoch": epoch, "parts": sorted(tensors), "facts": facts, "history": history}
    try:
        with claim.held():
            new.mkdir(parents=True)
            for part, values in tensors.items():
                plain = {key: value.detach().contiguous() for key, value in values.items()}
                write_atomically(new / f"{part}.safetensors", save(plain))
            write_json(new / "state.json", facts)
    except OSError:  # on a full disk, others need the space
        shutil.rmtree(new, ignore_errors=True)
        raise
    claim.publish(name)
    for state in (claim.trial / STATE).glob(f"{PREFIX}*"):
        if state.name < new.name:
            shutil.rmtree(state, ignore_errors=True)


def save_history(claim: Claim, history: list[dict[str, Any]]) -> None:
    """Writes a record per finished epoch, as a file that others read.

    Raises:
        SupersededError: another process has claimed the trial.
    """
    with claim.held():
        write_history(claim.folder / HISTORY, history)
    claim.publish(HISTORY)


def saved_precision(trial: Path) -> str | None:
    """The precision that the trial in this folder has used so far; None for a new trial."""
    for newest in sorted((trial / STATE).glob(f"{PREFIX}*"))[-1:]:
        facts = (read_record(newest / "state.json") or {}).get("facts")
        return facts.get("precision") if isinstance(facts, dict) else None
    return None


def load_state(trial: Path, subject: Stateful) -> tuple[int, list[dict[str, Any]]]:
    """Restores the newest state; returns the number of finished epochs and their history (0 and empty without one).

    Raises:
        ConfigError: the state cannot be read or belongs to another model.
    """
    folder = trial / STATE
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
