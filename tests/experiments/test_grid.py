"""Grid files: expansion, and the text of every refusal."""

import dataclasses
from pathlib import Path

import pytest

from experiments.config import TrialConfig
from experiments.grid import expand, parse_overrides, read_grid, shipped_grids
from refavs.config import flat
from refavs.errors import ConfigError

GRID = """
description: two axes and two cases
base:
  model: {num_layers: 2}
  train.learning_rate: 1e-3
grid:
  model.beta: [0, 0.5]
  train.batch_size: [4, 8, 16]
cases:
  full: {}
  no_text: {model: {text: false}}
seeds: [3, 5]
"""


def grid_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def refused(folder: Path, text: str, overrides: dict | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read_grid(grid_file(folder, text), overrides)
    return str(caught.value)


def test_grid_is_cases_by_axes_by_seeds(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, GRID))
    assert len(grid.trials) == 2 * 2 * 3 * 2
    assert grid.name == "mine" and grid.description == "two axes and two cases"
    last = grid.trials[-1]
    assert last.name == "no_text, beta 0.5, batch_size 16" and last.title.endswith(", seed 5")
    assert not last.config.model.text and last.config.model.beta == 0.5 and last.config.train.batch_size == 16
    assert {trial.config.train.learning_rate for trial in grid.trials} == {1e-3}
    assert {trial.config.model.num_layers for trial in grid.trials} == {2}


def test_grid_without_axes_is_one_trial_of_the_defaults() -> None:
    grid = expand("one", None, "one.yaml", {})
    assert [trial.config for trial in grid.trials] == [TrialConfig()]
    assert grid.trials[0].title == "one, seed 0"


def test_trial_key_depends_on_every_setting_the_seed_and_the_store(tmp_path: Path) -> None:
    trials = read_grid(grid_file(tmp_path, GRID)).trials
    keys = [trial.key(store) for trial in trials for store in ("a", "b")]
    assert len(set(keys)) == len(keys)
    assert [trial.key("a") for trial in read_grid(grid_file(tmp_path, GRID)).trials] == keys[::2]


def test_trial_key_counts_what_differs_from_the_defaults_and_the_files(tmp_path: Path) -> None:
    (trial,) = expand("one", {"base": {"train.epochs": 7}}, "one.yaml", {}).trials
    key = trial.key("a")
    (wide,) = expand("one", {"base": {"train.epochs": 7, "resources": {"workers": 2}}}, "one.yaml", {}).trials
    assert wide.config.resources.workers == 2 and wide.key("a") == key
    assert trial.key("a", {"model.later": 3, "train.epochs": 50}) == key
    assert trial.key("a", {"train.epochs": 7}) != key and trial.key("a", {"train.batch_size": 99}) != key
    assert dataclasses.replace(trial, digests={"init": "0f"}).key("a") != key


def test_override_replaces_the_base(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, GRID), parse_overrides(["model.num_layers=1", "train.precision=bf16"]))
    assert {trial.config.model.num_layers for trial in grid.trials} == {1}
    assert {trial.config.train.precision for trial in grid.trials} == {"bf16"}


@pytest.mark.parametrize("name", ["smoke", "proof", "proof_quick", "table4", "beta", "layers"])
def test_shipped_grid_expands(name: str) -> None:
    assert name in shipped_grids()
    grid = read_grid(name)
    assert grid.name == name and grid.description and grid.trials


def test_shipped_table4_has_the_ablations_of_the_paper() -> None:
    configs = {trial.name: trial.config.model for trial in read_grid("table4").trials}
    off = {name: [cue for cue in ("text", "audio", "memory", "modality_tokens") if not getattr(model, cue)]
           for name, model in configs.items()}  # fmt: skip
    assert off == {
        "full": [], "no_text": ["text"], "no_audio": ["audio"], "no_memory": ["memory"],
        "no_modality_tokens": ["modality_tokens"],
    }  # fmt: skip


def test_proof_varies_one_thing_at_a_time_with_five_seeds() -> None:
    grid = read_grid("proof")
    assert {trial.config.seed for trial in grid.trials} == {0, 1, 2, 3, 4} and len(grid.trials) == 50
    base = flat(next(trial for trial in grid.trials if trial.name == "full").config)
    changed = {
        trial.name: {name: value for name, value in flat(trial.config).items() if value != base[name]}
        for trial in grid.trials
        if trial.config.seed == base["seed"]
    }
    assert changed == {
        "full": {}, "no_text": {"model.text": False}, "no_audio": {"model.audio": False},
        "no_memory": {"model.memory": False}, "no_modality_tokens": {"model.modality_tokens": False},
        "beta_0.5": {"model.beta": 0.5}, "beta_2": {"model.beta": 2.0}, "beta_4": {"model.beta": 4.0},
        "layers_2": {"model.num_layers": 2}, "layers_4": {"model.num_layers": 4},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {model.btea: 1}", "mine.yaml, base: unknown setting 'model.btea'; did you mean 'model.beta'?"),
        ("cases: {x: {train.epoch: 1}}", "case 'x': unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("grids: {}", "unknown section 'grids'; did you mean 'grid'?"),
        ("base: {train.epochs: many}", "train.epochs is 'many' (str); accepted: a value of type int"),
        ("base: {model.text: 1}", "model.text is 1 (int); accepted: a value of type bool"),
        ("base: {train.precision: fp8}", "train.precision is 'fp8'; accepted: 'fp32', 'bf16'"),
        ("base: {train.epochs: 0}", "train.epochs is 0; accepted: a whole number from 1"),
        ("base: [1]", "mine.yaml, base is [1] (list); accepted: a mapping, `name: value` lines"),
        ("just words", "is 'just words' (str); accepted: a mapping"),
        ("grid: {model.beta: 1}", "model.beta is 1; accepted: a list of values, as [0.5, 1.0]"),
        ("grid: {model.beta: []}", "model.beta is []; accepted: a list of values"),
        ("seeds: 3", "seeds is 3; accepted: a list of distinct whole numbers, as [0, 1, 2]"),
        ("seeds: [1, 1]", "seeds is [1, 1]; accepted: a list of distinct whole numbers"),
        ("base: {seed: 1}", "'seed' is not set directly; list the seeds under seeds, as seeds: [0, 1]"),
        ("grid: {model.beta: [1]}\ncases: {x: {model.beta: 2}}", "model.beta is an axis of grid and set by a case"),
        ("cases: {a: {}, b: {}}", "'a, seed 0' and 'b, seed 0' have the same settings; keep one of them"),
        ("grid: {model.beta: [1, 1]}", "two trials are named 'beta 1, seed 0'"),
        ("base: {}\nbase: {}", "mine.yaml is not valid YAML: key 'base' is written twice"),
        ("base: {model.beta: 1", "mine.yaml is not valid YAML"),
    ],
)
def test_bad_grid_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_override_of_what_the_grid_varies_is_refused(tmp_path: Path) -> None:
    assert "--set model.beta:" in refused(tmp_path, GRID, {"model.beta": 1.0})
    assert "mine.yaml varies it; change the grid file" in refused(tmp_path, GRID, {"model.text": False})


def test_unknown_override_is_refused_with_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, GRID, {"train.learning_rat": 1.0})
    assert message == "--set: unknown setting 'train.learning_rat'; did you mean 'train.learning_rate'?"


@pytest.mark.parametrize("pair", ["train.epochs", "=3"])
def test_override_without_name_or_value_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match=r"has no name=value; write for example --set train\.epochs=3"):
        parse_overrides([pair])


def test_override_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set gives 'a' twice; give it once"):
        parse_overrides(["a=1", "a=2"])


def test_unknown_grid_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError, match=r"no grid named 'smok'; did you mean 'smoke'\?"):
        read_grid("smok")


def test_missing_grid_file_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no grid file gone\.yaml; .*layers, proof, proof_quick, smoke, table4"):
        read_grid("gone.yaml")


def test_grid_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_bytes("description: caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"g\.yaml is not UTF-8 text \(.*\); save it as UTF-8"):
        read_grid(str(tmp_path / "g.yaml"))
