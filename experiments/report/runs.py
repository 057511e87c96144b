"""Reads the runs of a sweep from its folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.grid.config import HEAD, defaults
from experiments.records.ledger import Ledger, read_metrics
from experiments.records.record_types import Controls, Epoch, Settings, Status, read_record
from refavs.config import flat, kinds
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.files.typed_json import shaped
from refavs.metrics import STATISTICS_FILE
from refavs.model.heads.registry import DEFAULT, options_class
from refavs.model.options import HeadOptions


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """One finished trial.

    Attributes:
        name: name of the trial, without its seed.
        store: fingerprint of the features it read.
        contents: digest of its expressions and masks, which other stores may share; the store's fingerprint if no sweep
            records it.
        splits: splits of the expressions, with their roles.
        config: every setting by dotted name, including `seed`, and the `digests` of files that it started from. A
            setting added to the code later has its default; a removed one is left out if it had its default.
        history: the records of its epochs, oldest first.
    """

    key: str
    name: str
    seed: int
    folder: Path
    store: str
    contents: str
    splits: Splits
    config: dict[str, Any]
    history: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """The name with the seed."""
        return f"{self.name}, seed {self.seed}"

    @property
    def statistics(self) -> Path:
        """Path of the statistics of its predictions."""
        return self.folder / STATISTICS_FILE

    @property
    def checkpoint(self) -> Path:
        """The folder of the trained head."""
        return self.folder / "checkpoint"


@dataclass(frozen=True, kw_only=True)
class SavedSweep:
    """A sweep's finished runs and facts.

    Attributes:
        grid: name of its grid.
        runs: ordered by name (numbers in names by value), then by seed.
        unfinished: state of each trial without a result, by title.
        controls: the constant predictions from `controls.json`: `store`, and `controls` by name.
        facts: the content of `sweep.json`: `id`, `tracking_uri`, `run_id` (MLflow's parent run) and, except in older
            sweeps, `store` (location), `fingerprint`, `encoders` (name by stream), `random_features`, `git`.
    """

    folder: Path
    grid: str
    runs: tuple[SavedRun, ...]
    unfinished: dict[str, str] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def stores(self) -> list[dict[str, Any]]:
        """For each known store: `store`, `fingerprint`, `encoders` and `random_features`, as in `facts`."""
        several = self.facts.get("stores", {})
        return [*several.values(), *([self.facts] if self.facts.get("fingerprint") not in several else [])]


def saved_sweep(folder: Path) -> SavedSweep:
    """Reads a sweep's folder.

    Raises:
        ConfigError: `folder` is not a sweep, or none of its trials is finished.
    """
    facts = Ledger(folder).sweep
    if not facts and not (folder / "trials").is_dir():
        kind = "is not a sweep's folder" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"{folder} {kind} (it has no sweep.json and no trials); give the folder that refavs-sweep "
                          "wrote, e.g. runs/NAME")
    runs, unfinished = [], {}
    for path in sorted((folder / "trials").glob("*/config.json")):
        try:
            run, state = _read_run(path.parent, facts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the trial {path.parent} cannot be read ({type(error).__name__}: {error}); remove that "
                              "folder and run the sweep's refavs-sweep command again") from error
        if state == "finished":
            runs.append(run)
        else:
            unfinished[run.title] = state
    if not runs:
        left = f"{len(unfinished)} trials without a result" if unfinished else "no trial at all"
        raise ConfigError(f"the sweep {folder} has no finished run ({left}); run its refavs-sweep command again")
    return SavedSweep(
        folder=folder, grid=str(facts.get("grid") or folder.name), unfinished=unfinished,
        runs=tuple(sorted(runs, key=lambda run: (natural(run.name), run.seed, run.key))),
        controls=read_record(folder / "controls.json", Controls) or {}, facts=facts,
    )  # fmt: skip


def saved_sweeps(folders: Sequence[Path]) -> list[SavedSweep]:
    """As `saved_sweep` for each; facts that one sweep records about a store apply to all runs on that store."""
    sweeps = [saved_sweep(folder) for folder in folders]
    known = {name: store["contents"] for sweep in sweeps for name, store in sweep.facts.get("stores", {}).items()}
    return [
        replace(sweep, runs=tuple(replace(run, contents=known.get(run.store, run.store)) for run in sweep.runs))
        for sweep in sweeps
    ]


def natural(text: str) -> list[tuple[float, str]]:
    """A sort key that orders numbers in texts by value: beta 0.5, beta 2, beta 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if place % 2 else (-1.0, part) for place, part in enumerate(parts)]


def head_of(config: Mapping[str, Any]) -> type[HeadOptions] | None:
    """The options class of a run's head; None if it is not installed here."""
    try:
        return options_class(str(config.get(HEAD, DEFAULT)))
    except ConfigError:
        return None


@cache
def _settings_of(head: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Default and type of every setting of a trial, except those of a head that is not installed here."""
    own = head_of({HEAD: head})
    config = defaults(head if own else DEFAULT)
    values, types = ({name: value for name, value in found.items() if own or not name.startswith("model.")}
                     for found in (flat(config), kinds(config)))  # fmt: skip
    return values, types


def _read_run(folder: Path, facts: Mapping[str, Any]) -> tuple[SavedRun, str]:
    """Reads a trial and its state in the ledger; a killed trial may be `running`.

    Args:
        facts: facts of the sweep, including the settings' defaults when it began, as far as known.
    """
    began = facts.get("defaults", {})
    contents = {fingerprint: store["contents"] for fingerprint, store in facts.get("stores", {}).items()}
    settings = read_record(folder / "config.json", Settings) or {}
    status, result = read_record(folder / "status.json", Status), read_record(folder / "result.json", Epoch)
    known, of = _settings_of(str(settings["config"].get(HEAD, DEFAULT)))
    for name in settings["config"].keys() & of.keys():
        shaped(settings["config"][name], of[name], name)
    own = {
        name: value for name, value in settings["config"].items()
        if name in known or name not in began or value != began[name]
    }
    started = {f"digests.{name}": digest for name, digest in settings.get("digests", {}).items()}
    run = SavedRun(
        key=settings["key"], name=settings["name"], seed=settings["seed"], folder=folder, store=settings["store"],
        contents=contents.get(settings["store"], settings["store"]),
        splits=Splits.of(facts.get("stores", {}).get(settings["store"], facts)),
        config=known | own | started, history=tuple(read_metrics(folder)),
    )  # fmt: skip
    state = status["state"] if status else "new"
    return run, state if result or state != "finished" else "without a result"
