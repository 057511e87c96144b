"""The description of one trial: its name, all its settings, and the key that identifies it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.grid.config import HEAD, TrialConfig, defaults
from refavs.config import digest, flat
from refavs.errors import ConfigError
from refavs.model.heads.registry import DEFAULT

_UNKNOWN = object()
# Resources do not affect the result; for `train.init` the digest of the file counts, not its path.
NOT_IN_KEY = ("resources.", "train.init")
MAX_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class TrialStore:
    """The store of a trial in a sweep over several stores; `name` is the name given by the user."""

    name: str
    location: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a grid: a name without the seed, and every setting resolved.

    Attributes:
        digests: digests of the files that the trial starts from, by their role.
        weights_dir: folder of these files; not part of the key.
        store: the store that it reads; None if the sweep has only one.
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
        """Identifies the trial by its settings, the features it reads and the files it starts from.

        Only settings that differ from their defaults count, so that adding a setting to the code does not change the
        keys of trials that leave it at its default.

        Args:
            fingerprint: fingerprint of the features that it reads.
            recorded: the defaults when the sweep began, by the names of `recorded_defaults`; missing ones are taken
                from the code.
        """
        known = known_defaults(self.config.model.head, recorded or {})
        settings = {
            name: _unsigned(value) for name, value in flat(self.config).items()
            if value != known.get(name, _UNKNOWN) and not name.startswith(NOT_IN_KEY)
        }
        return digest({"settings": settings, "store": fingerprint, **({"files": self.digests} if self.digests else {})})


def _prefix(head: str) -> str:
    """Prefix of the recorded names of `model.*` settings; the default head has the same names as in a grid."""
    return "model." if head == DEFAULT else f"model:{head}."


def recorded_defaults(heads: Iterable[str]) -> dict[str, Any]:
    """The defaults of all settings for these heads, by the names under which a sweep records them."""
    return {
        f"{_prefix(head)}{name.removeprefix('model.')}" if name.startswith("model.") else name: value
        for head in heads for name, value in known_defaults(head, {}).items()
    }


def known_defaults(head: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each setting for this head: the recorded one, or else that of the code."""
    now = flat(defaults(head)) | {HEAD: DEFAULT}  # another head counts as a difference
    then = {f"model.{name.removeprefix(_prefix(head))}" if name.startswith(_prefix(head)) else name: value
            for name, value in recorded.items() if not name.startswith("model") or name.startswith(_prefix(head))}
    return now | {name: value for name, value in then.items() if name in now}


def _unsigned(value: Any) -> Any:
    """Replaces -0.0 with 0.0, because they are the same setting."""
    if isinstance(value, list):
        return [_unsigned(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def short_names(names: Sequence[str]) -> list[str]:
    """Shortens each name to its last part if that is unambiguous."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]


def refuse_twins(where: str, trials: Sequence[Trial]) -> None:
    """Checks that trials are distinct.

    Raises:
        ConfigError: two trials have the same name or the same settings.
    """
    titles: set[str] = set()
    by_key: dict[tuple[str, str | None], str] = {}
    for trial in trials:
        init = None if trial.digests else trial.config.train.init  # the path counts until the file has a digest
        own = trial.store.fingerprint if trial.store else ""
        twin = by_key.setdefault((trial.key(own), init), trial.title)
        if trial.title in titles:
            raise ConfigError(f"{where}: two trials are named {trial.title!r}; rename a case or drop a repeated value")
        if twin != trial.title:
            raise ConfigError(f"{where}: {twin!r} and {trial.title!r} have the same settings; keep one of them")
        titles.add(trial.title)
