"""Grid files: a YAML description of many trials, expanded and checked before anything starts."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from experiments.config import TrialConfig
from refavs.config import digest, flat, nearest, replace
from refavs.errors import ConfigError
from refavs.model.checkpoint import checkpoint_digest, read_config
from refavs.model.pretrained import Mask2Former

_UNKNOWN = object()
# What a trial runs on, and the place of a file whose digest counts instead.
NOT_IN_KEY = ("resources.", "train.init")
SECTIONS = ("description", "base", "grid", "cases", "seeds")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a grid: a name without the seed, and every setting resolved.

    Attributes:
        digests: of the files that the trial starts from, by what they are to it.
        weights_dir: where these files lie, which makes no other trial.
    """

    name: str
    config: TrialConfig
    digests: Mapping[str, str] = field(default_factory=dict)
    weights_dir: Path | None = None

    @property
    def title(self) -> str:
        """The name with the seed."""
        return f"{self.name}, seed {self.config.seed}"

    def key(self, fingerprint: str, defaults: Mapping[str, Any] | None = None) -> str:
        """What makes this trial the same as another: its settings, the features it reads and the files it starts from.

        Only settings that differ from `defaults` count, so that a setting which is new in the code, and which a trial
        leaves at its default, makes no new trial.

        Args:
            defaults: every setting's default when the sweep began; those of the code where one is missing.
        """
        known = flat(TrialConfig()) | dict(defaults or {})
        settings = {
            name: value for name, value in flat(self.config).items()
            if value != known.get(name, _UNKNOWN) and not name.startswith(NOT_IN_KEY)
        }
        return digest({"settings": settings, "store": fingerprint, **({"files": self.digests} if self.digests else {})})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A named set of distinct trials, in the order of the file."""

    name: str
    description: str
    trials: tuple[Trial, ...]


def with_weights(grid: Grid, weights_dir: Path | None) -> Grid:
    """The grid with the files that its trials start from.

    Args:
        weights_dir: as refavs-extract takes it; trials that start from random weights need none.

    Raises:
        ConfigError: a trial starts from weights, and no folder is given.
        WeightsError: the folder has no such weights.
    """
    starting = [trial for trial in grid.trials if trial.config.model.decoder_weights != "random"]
    if not starting:
        return grid
    if weights_dir is None:
        kind = starting[0].config.model.decoder_weights
        raise ConfigError(
            f"trial {starting[0].name!r} has model.decoder_weights={kind}; give the folder that has {kind}/ by "
            "--weights-dir, or take --set model.decoder_weights=random"
        )
    digests = {"decoder_weights": Mask2Former.within(weights_dir).stamp}
    trials = tuple(
        dataclasses.replace(trial, digests=digests, weights_dir=weights_dir.absolute()) if trial in starting else trial
        for trial in grid.trials
    )
    return dataclasses.replace(grid, trials=trials)


def with_checkpoints(grid: Grid, fingerprint: str, any_store: bool = False) -> Grid:
    """The grid with the trained heads that its trials start from.

    Args:
        fingerprint: of the features that the trials read.
        any_store: accept a head that was trained on other features.

    Raises:
        ConfigError: a head that was trained on other features.
        WeightsError: a folder without a checkpoint.
    """
    trials = []
    for trial in grid.trials:
        init = trial.config.train.init
        if init is None:
            trials.append(trial)
            continue
        folder = Path(init).absolute()
        known = read_config(folder)["facts"].get("store")
        if known != fingerprint and not any_store:
            raise ConfigError(
                f"trial {trial.name!r}: the head in {init} was trained on the store {str(known)[:12]}, this one is "
                f"{fingerprint[:12]}; give the store that it knows, or --any-store to train it on other features"
            )
        trials.append(dataclasses.replace(
            trial, config=replace(trial.config, {"train.init": str(folder)}),
            digests={**trial.digests, "init": checkpoint_digest(folder)},
        ))  # fmt: skip
    _refuse_twins(f"grid {grid.name}", trials)
    return dataclasses.replace(grid, trials=tuple(trials))


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` holds.

    Raises:
        ConfigError: text that is not YAML, or a mapping with a repeated key.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def shipped_grids() -> dict[str, str]:
    """The text of every grid that comes with the package, by name."""
    folder = resources.files("experiments") / "grids"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in files}


def read_grid(grid: str, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Reads a grid file, or a shipped grid by its name, and expands it into trials.

    Args:
        grid: a path that ends in .yaml or .yml, or the name of a shipped grid.
        overrides: dotted settings that replace those of `base`, as `--set` gives them.

    Raises:
        ConfigError: an unknown grid, section or setting; a value of another type; a setting that two sections claim.
    """
    path = Path(grid)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no grid file {grid}; give an existing .yaml file or one of {_names()}")
        try:
            name, text, where = path.stem, path.read_text("utf-8"), grid
        except UnicodeDecodeError as error:
            raise ConfigError(f"{grid} is not UTF-8 text ({error}); save it as UTF-8") from error
    else:
        shipped = shipped_grids()
        if grid not in shipped:
            near = nearest(grid, shipped)
            raise ConfigError(f"no grid named {grid!r}; {near} (shipped: {_names()}), or give a .yaml file")
        name, text, where = grid, shipped[grid], f"shipped grid {grid}"
    return expand(name, parse_yaml(text, where), where, overrides or {})


def expand(name: str, content: Any, where: str, overrides: Mapping[str, Any]) -> Grid:
    """The trials of a parsed grid file: cases x Cartesian product of the axes x seeds.

    Raises:
        ConfigError: as `read_grid`.
    """
    content = _mapping({} if content is None else content, where)
    for section in content:
        if section not in SECTIONS:
            raise ConfigError(f"{where}: unknown section {section!r}; {nearest(str(section), SECTIONS)}")
    base = _flatten(_mapping(content.get("base") or {}, f"{where}, base"))
    axes = _axes(content.get("grid") or {}, where)
    cases = {
        str(case): _flatten(_mapping(settings or {}, f"{where}, case {case!r}"))
        for case, settings in _mapping(content.get("cases") or {"": {}}, f"{where}, cases").items()
    }
    seeds = _seeds(content.get("seeds", [0]), where)
    _refuse_clashes(where, base, axes, cases, overrides)
    config = _replaced(TrialConfig(), base, f"{where}, base")
    config = _replaced(config, overrides, "--set")
    trials: list[Trial] = []
    for case, settings in cases.items():
        in_case = _replaced(config, settings, f"{where}, case {case!r}" if case else where)
        for values in itertools.product(*axes.values()):
            point = _replaced(in_case, dict(zip(axes, values, strict=True)), f"{where}, grid")
            parts = [case, *(f"{axis.split('.')[-1]} {value}" for axis, value in zip(axes, values, strict=True))]
            label = ", ".join(part for part in parts if part) or name
            for seed in seeds:
                trials.append(Trial(name=label, config=_replaced(point, {"seed": seed}, f"{where}, seeds")))
    _refuse_twins(where, trials)
    return Grid(name=name, description=str(content.get("description") or ""), trials=tuple(trials))


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Settings written as `name=value`, with the value read as YAML.

    Raises:
        ConfigError: no `=`, or a name given twice.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair!r} has no name=value; write for example --set train.epochs=3")
        if name in overrides:
            raise ConfigError(f"--set gives {name!r} twice; give it once")
        overrides[name] = parse_yaml(value, f"--set {pair!r}")
    return overrides


def _names() -> str:
    return ", ".join(shipped_grids())


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); accepted: a mapping, `name: value` lines")
    return value


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested or dotted settings as dotted ones."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _axes(value: Any, where: str) -> dict[str, list[Any]]:
    axes = _flatten(_mapping(value, f"{where}, grid"))
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}, grid: {name} is {values!r}; accepted: a list of values, as [0.5, 1.0]")
    return axes


def _seeds(value: Any, where: str) -> list[int]:
    good = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not good or len(set(value)) < len(value):
        raise ConfigError(f"{where}: seeds is {value!r}; accepted: a list of distinct whole numbers, as [0, 1, 2]")
    return value


def _replaced(config: TrialConfig, settings: Mapping[str, Any], where: str) -> TrialConfig:
    try:
        return replace(config, settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_clashes(
    where: str,
    base: dict[str, Any],
    axes: dict[str, Any],
    cases: dict[str, dict[str, Any]],
    overrides: Mapping[str, Any],
) -> None:
    """One setting has one place: else a value would be overruled without a word."""
    in_cases = {name for settings in cases.values() for name in settings}
    if "seed" in {*base, *axes, *in_cases, *overrides}:
        raise ConfigError(f"{where}: 'seed' is not set directly; list the seeds under seeds, as seeds: [0, 1]")
    for name in axes:
        if name in in_cases:
            raise ConfigError(f"{where}: {name} is an axis of grid and set by a case; keep one of them")
    for name in overrides:
        if name in axes or name in in_cases:
            raise ConfigError(f"--set {name}: {where} varies it; change the grid file, or set another name")


def _refuse_twins(where: str, trials: list[Trial]) -> None:
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
