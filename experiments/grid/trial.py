"""One trial as it is described: its name, all its settings, and the key by which it is known as done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.grid.config import HEAD, TrialConfig, defaults
from refavs.config import digest, flat
from refavs.errors import ConfigError
from refavs.model.heads.registry import DEFAULT

_UNKNOWN = object()
# What a trial runs on, and the place of a file whose digest counts instead.
NOT_IN_KEY = ("resources.", "train.init")
MAX_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class TrialStore:
    """The store of a trial in a sweep over several; `name` is what its user calls it."""

    name: str
    location: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a grid: a name without the seed, and every setting resolved.

    Attributes:
        digests: of the files that the trial starts from, by what they are to it.
        weights_dir: where these files lie, which makes no other trial.
        store: whose features it reads; None where a sweep has one store for all.
    """

    name: str
    config: TrialConfig
    digests: Mapping[str, str] = field(default_factory=dict)
    weights_dir: Path | None = None
    store: TrialStore | None = None

    @property
    def title(self) -> str:
        """The name with the seed."""
        return f"{self.name}, seed {self.config.seed}"

    def key(self, fingerprint: str, recorded: Mapping[str, Any] | None = None) -> str:
        """What makes this trial the same as another: its settings, the features it reads and the files it starts from.

        Only settings that differ from their defaults count, so that a setting which is new in the code makes no new
        trial where it is left at its default.

        Args:
            fingerprint: of the features that it reads.
            recorded: every setting's default when the sweep began, as `recorded_defaults` names it; those of the code
                where one is missing.
        """
        known = known_defaults(self.config.model.head, recorded or {})
        settings = {
            name: _unsigned(value) for name, value in flat(self.config).items()
            if value != known.get(name, _UNKNOWN) and not name.startswith(NOT_IN_KEY)
        }
        return digest({"settings": settings, "store": fingerprint, **({"files": self.digests} if self.digests else {})})


def _prefix(head: str) -> str:
    """What the recorded names of the settings below `model.` begin with; those of the default head are as in a grid."""
    return "model." if head == DEFAULT else f"model:{head}."


def recorded_defaults(heads: Iterable[str]) -> dict[str, Any]:
    """The defaults of all settings of trials with these heads, by names under which a sweep records them."""
    return {
        f"{_prefix(head)}{name.removeprefix('model.')}" if name.startswith("model.") else name: value
        for head in heads for name, value in known_defaults(head, {}).items()
    }


def known_defaults(head: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each setting of a trial with this head, as recorded, or else as the code has it."""
    now = flat(defaults(head)) | {HEAD: DEFAULT}  # another head is a difference
    then = {f"model.{name.removeprefix(_prefix(head))}" if name.startswith(_prefix(head)) else name: value
            for name, value in recorded.items() if not name.startswith("model") or name.startswith(_prefix(head))}
    return now | {name: value for name, value in then.items() if name in now}


def _unsigned(value: Any) -> Any:
    """A value in which -0.0 is 0.0: the same number is the same setting."""
    if isinstance(value, list):
        return [_unsigned(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each name, where that is enough to tell it from the others."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]


def refuse_twins(where: str, trials: Sequence[Trial]) -> None:
    """Refuses trials that are one and the same.

    Raises:
        ConfigError: two trials of one name, or of the same settings.
    """
    titles: set[str] = set()
    by_key: dict[tuple[str, str | None], str] = {}
    for trial in trials:
        init = None if trial.digests else trial.config.train.init  # a place, until the file has a digest
        own = trial.store.fingerprint if trial.store else ""
        twin = by_key.setdefault((trial.key(own), init), trial.title)
        if trial.title in titles:
            raise ConfigError(f"{where}: two trials are named {trial.title!r}; rename a case or drop a repeated value")
        if twin != trial.title:
            raise ConfigError(f"{where}: {twin!r} and {trial.title!r} have the same settings; keep one of them")
        titles.add(trial.title)
