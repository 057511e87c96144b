"""One trial as it is described: its name, all its settings, and the key by which it is known as done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.grid.config import TrialConfig
from refavs.config import digest, flat
from refavs.errors import ConfigError

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

    def key(self, fingerprint: str, defaults: Mapping[str, Any] | None = None) -> str:
        """What makes this trial the same as another: its settings, the features it reads and the files it starts from.

        Only settings that differ from `defaults` count, so that a setting which is new in the code, and which a trial
        leaves at its default, makes no new trial.

        Args:
            fingerprint: of the features of a sweep with one store.
            defaults: every setting's default when the sweep began; those of the code where one is missing.
        """
        known = flat(TrialConfig()) | dict(defaults or {})
        settings = {
            name: _unsigned(value) for name, value in flat(self.config).items()
            if value != known.get(name, _UNKNOWN) and not name.startswith(NOT_IN_KEY)
        }
        store = self.store.fingerprint if self.store else fingerprint
        return digest({"settings": settings, "store": store, **({"files": self.digests} if self.digests else {})})


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
        twin = by_key.setdefault((trial.key(""), init), trial.title)
        if trial.title in titles:
            raise ConfigError(f"{where}: two trials are named {trial.title!r}; rename a case or drop a repeated value")
        if twin != trial.title:
            raise ConfigError(f"{where}: {twin!r} and {trial.title!r} have the same settings; keep one of them")
        titles.add(trial.title)
