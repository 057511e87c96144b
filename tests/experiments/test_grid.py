"""Grid files: expansion, and the text of every error."""

import dataclasses
from pathlib import Path

import pytest

from experiments.grid.config import TrialConfig
from experiments.grid.expand import expand, parse_overrides, read_grid
from experiments.grid.file import shipped_grids
from experiments.report.published import ENCODERS
from refavs.config import flat, replace
from refavs.errors import ConfigError
from refavs.model.heads.registry import names

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
    return str(caught.value).replace(f"{folder}/", "")


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


@pytest.mark.long
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


def test_zip_pairs_its_axes_and_is_crossed_with_the_others(tmp_path: Path) -> None:
    text = "zip: {model.num_layers: [1, 2], train.learning_rate: [1e-3, 5e-4]}\ngrid: {model.beta: [0, 1]}"
    trials = read_grid(grid_file(tmp_path, text)).trials
    found = [(t.config.model.num_layers, t.config.train.learning_rate, t.config.model.beta) for t in trials]
    assert found == [(1, 1e-3, 0), (1, 1e-3, 1), (2, 5e-4, 0), (2, 5e-4, 1)]
    assert trials[3].name == "num_layers 2, learning_rate 0.0005, beta 1"


def test_axes_with_the_same_last_name_are_distinguished(tmp_path: Path) -> None:
    text = "zip: {model.feedforward_channels: [8, 16], loss.num_points: [0, 9], model.num_layers: [1, 2]}"
    assert read_grid(grid_file(tmp_path, text)).trials[0].name == "feedforward_channels 8, num_points 0, num_layers 1"


def test_conditions_set_and_skip_what_they_name(tmp_path: Path) -> None:
    text = """
    grid: {model.num_layers: [1, 2, 4], model.memory: [true, false]}
    when:
      - if: {model.num_layers: [2, 4]}
        set: {train.batch_size: 4, resources.workers: 2}
      - {if: {model.num_layers: 4, model.memory: false}, skip: true}
      - {if: {seed: 1, model.num_layers: 4}, skip: true}
    seeds: [0, 1]
    """
    trials = read_grid(grid_file(tmp_path, text)).trials
    assert {(t.config.model.num_layers, t.config.train.batch_size, t.config.resources.workers) for t in trials} == {
        (1, 8, 1), (2, 4, 2), (4, 4, 2)
    }  # fmt: skip
    of_four = [(t.config.model.memory, t.config.seed) for t in trials if t.config.model.num_layers == 4]
    assert of_four == [(True, 0)] and len(trials) == 4 + 4 + 1


def test_condition_made_idle_by_an_override_is_accepted(tmp_path: Path) -> None:
    text = "base: {model.num_layers: 4}\nwhen: [{if: {model.num_layers: 4}, set: {train.batch_size: 2}}]"
    sizes = [
        read_grid(grid_file(tmp_path, text), overrides).trials[0].config.train.batch_size
        for overrides in ({}, {"model.num_layers": 1})
    ]
    assert sizes == [2, 8]


def test_resources_are_not_part_of_the_key(tmp_path: Path) -> None:
    text = "cases: {small: {}, large: {model.num_layers: 6, resources.workers: 4}}"
    plain = read_grid(grid_file(tmp_path, text)).trials
    spread = read_grid(grid_file(tmp_path, f"{text}\nresources: {{workers: 2}}")).trials
    assert [trial.config.resources.workers for trial in plain] == [1, 4]
    assert [trial.config.resources.workers for trial in spread] == [2, 4]
    assert [trial.key("a") for trial in plain] == [trial.key("a") for trial in spread]


def test_order_of_settings_that_belong_together_is_free(tmp_path: Path) -> None:
    text = "base: {train: {acoustic_temporal_weight: 2.5}}\ncases: {a: {train.sampling: dimension}}"
    (trial,) = read_grid(grid_file(tmp_path, text)).trials
    assert trial.config.train.acoustic_temporal_weight == 2.5
    message = refused(tmp_path, "base:\n  model.beta: 2\n  train.acoustic_temporal_weight: 2.5")
    assert message.startswith("mine.yaml:3, base: train.acoustic_temporal_weight is 2.5 with")


def test_yaml_keeps_names_anchors_and_merges(tmp_path: Path) -> None:
    text = """
    base: &small {train: {epochs: 2, batch_size: 4}}
    cases:
      no: {<<: *small, model.audio: false}
      on: {}
    """
    trials = read_grid(grid_file(tmp_path, text)).trials
    assert [trial.name for trial in trials] == ["no", "on"] and not trials[0].config.model.audio
    assert {trial.config.train.epochs for trial in trials} == {2}


@pytest.mark.long
def test_yaml_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    assert "more than 100,000 values; write fewer aliases" in refused(tmp_path, "\n".join(lines))


def test_override_replaces_the_base(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, GRID), parse_overrides(["model.num_layers=1", "train.precision=bf16"]))
    assert {trial.config.model.num_layers for trial in grid.trials} == {1}
    assert {trial.config.train.precision for trial in grid.trials} == {"bf16"}


@pytest.mark.parametrize(
    "name", ["smoke", "proof", "proof_quick", "per_clip", "table3", "table3_tiny", "table3_tiny_rates", "table4",
             "beta", "layers", "encoders", "dtypes", "released"],
)  # fmt: skip
def test_shipped_grid_expands(name: str) -> None:
    assert name in shipped_grids()
    grid = read_grid(name, {"train.init": "ckpt_best_miou.pth"} if name == "released" else {})
    assert grid.name == name and grid.description and grid.trials


def test_shipped_proof_quick_trains_as_the_proof_does() -> None:
    whole, quick = ({trial.config.model: trial.config for trial in read_grid(name).trials if not trial.config.seed}
                    for name in ("proof", "proof_quick"))  # fmt: skip
    for model, config in quick.items():
        assert replace(config, {"train.steps_per_epoch": 0}) == replace(whole[model], {"train.steps_per_epoch": 0})


def test_shipped_table4_has_the_ablations_of_the_paper() -> None:
    configs = {trial.name: trial.config.model for trial in read_grid("table4").trials}
    off = {name: [cue for cue in ("text", "audio", "memory", "modality_tokens") if not getattr(model, cue)]
           for name, model in configs.items()}  # fmt: skip
    assert off == {
        "full": [], "no_text": ["text"], "no_audio": ["audio"], "no_memory": ["memory"],
        "no_modality_tokens": ["modality_tokens"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["table3", "table3_tiny"])
def test_shipped_table3_has_each_baseline_alone_and_extended(name: str) -> None:
    cues = {(trial.config.model.head, trial.config.model.text, trial.config.model.audio)
            for trial in read_grid(name).trials}  # fmt: skip
    by_sound, by_words = ("avsbench", "avsegformer", "gavs"), ("referformer", "r2vos")
    assert cues == {
        ("eemc", True, True), *((head, True, True) for head in (*by_sound, *by_words)),
        *((head, False, True) for head in by_sound), *((head, True, False) for head in by_words),
    }  # fmt: skip


def test_learning_rates_of_table3_tiny_are_searched_for_its_own_settings() -> None:
    def settings(grid: str) -> dict[str, TrialConfig]:
        short = {"train.steps_per_epoch": 1, "train.epochs": 1, "train.learning_rate": 1.0}
        return {trial.name.split(",")[0]: replace(trial.config, short) for trial in read_grid(grid).trials
                if not trial.config.seed}  # fmt: skip

    searched, trained = settings("table3_tiny_rates"), settings("table3_tiny")
    assert len(searched) == 6 and searched.items() <= trained.items()


def test_shipped_encoders_has_the_rows_of_the_supplement_on_one_store() -> None:
    rows = {trial.name: (trial.config.model.text, trial.config.model.audio) for trial in read_grid("encoders").trials}
    flan, bound = "flan-t5-base/tokens", "languagebind-audio/seconds"
    assert rows == {
        "full": ("roberta-base", "vggish"), "text Flan-T5": (flan, "vggish"), "both": (flan, bound),
        "text LanguageBind": ("languagebind-text/tokens", "vggish"), "audio LanguageBind": ("roberta-base", bound),
    }  # fmt: skip
    assert {label.label for label in ENCODERS} - {"RoBERTa + VGGish"} <= rows.keys()


@pytest.mark.parametrize("name", ["table3", "table4", "beta", "layers", "encoders"])
def test_shipped_grids_take_one_expression_of_a_clip(name: str) -> None:
    assert {trial.config.train.expressions_per_clip for trial in read_grid(name).trials} == {1}


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
        ("base: {model.btea: 1}", "mine.yaml:1, base: unknown setting 'model.btea'; did you mean 'model.beta'?"),
        ("cases: {x: {train.epoch: 1}}", ":1, case 'x': unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("\ngrids: {}", "mine.yaml:2: unknown section 'grids'; did you mean 'grid'?"),
        ("base:\n  model.text: true\n  train:\n    epochs: many", "mine.yaml:4, base: train.epochs is 'many' (str);"),
        ("base: {model.text: 1}", "model.text is 1 (int); accepted: a value of type bool or str"),
        ("base: {train.precision: fp8}", "train.precision is 'fp8'; accepted: 'auto', 'fp32', "),
        ("base: {train.epochs: 0}", "mine.yaml:1, base: train.epochs is 0; accepted: a whole number from 1"),
        ("base: {model.text: false}\ncases:\n  a:\n    model.num_layers: 0",
         "mine.yaml:4, case 'a': model.num_layers is 0"),
        ("base:\n  model.beta: 2\n  model: {beta: 1}", ":3, base: model.beta is also set at mine.yaml:2, base; keep o"),
        ("base: [1]", "mine.yaml:1, base: is [1] (list); accepted: a mapping, `name: value` lines"),
        ("just words", "mine.yaml:1: is 'just words' (str); accepted: a mapping"),
        ("grid: {model.beta: 1}", "mine.yaml:1, grid: model.beta is 1; accepted: a list of values, as [0.5, 1.0]"),
        ("grid: {model.beta: []}", "model.beta is []; accepted: a list of values"),
        ("grid:\n  model.beta:\n  - 1\n  - high", "mine.yaml:4, grid: model.beta is 'high' (str); accepted: a value o"),
        ("grid: {model.beat: 3}", "mine.yaml:1, grid: unknown setting 'model.beat'; did you mean 'model.beta'?"),
        ("seeds: 3", "seeds is 3; accepted: a list of distinct whole numbers, as [0, 1, 2]"),
        ("seeds: [1, 1]", "seeds is [1, 1]; accepted: a list of distinct whole numbers"),
        ("base: {seed: 1}", "'seed' is not set directly; list the seeds under seeds, as seeds: [0, 1]"),
        ("grid: {model.beta: [1]}\ncases: {x: {model.beta: 2}}", ":2, case 'x': model.beta is an axis of grid and set"),
        ("cases: {a: {}, b: {}}", "'a, seed 0' and 'b, seed 0' have the same settings; keep one of them"),
        ("grid: {model.beta: [1, 1]}", "two trials are named 'beta 1, seed 0'"),
        ("base: {}\nbase: {}", "mine.yaml:2: key 'base' is written twice (first at mine.yaml:1); keep one"),
        ("base: {model.beta: 1", "mine.yaml:1: not valid YAML: while parsing a flow mapping, expected ',' or '}'"),
        ("base: !!python/name:os.system {}", "mine.yaml:1: the tag tag:yaml.org,2002:python/name:os.system is not acc"),
        ("a: !!python/object/apply:os.system [ls]", "mine.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.sy"),
        ("description: !!python/name:os.system x", "not valid YAML: could not determine a constructor for the tag"),
        ("base: &a {model: *a}", "mine.yaml:1: an alias stands for a value that contains it"),
        ("zip: {model.beta: [1, 2]}", "mine.yaml:1, zip: model.beta has no partner; name two or more, or write it und"),
        ("zip: {model.beta: [1, 2], model.num_layers: [1]}", "model.beta has 2, model.num_layers has 1 values; accept"),
        ("zip: {model.beta: [1], model.num_layers: [1]}\ngrid: {model.beta: [2]}", "an axis of grid and an axis of zi"),
        ("resources: {worker: 2}", ":1, resources: unknown setting 'resources.worker'; did you mean 'resources.worker"),
        ("base: {resources.workers: 2}\nresources: {workers: 2}", ":2, resources: resources.workers is also set at mi"),
        ("resources: {workers: 0}", "mine.yaml:1, resources: resources.workers is 0; accepted: a whole number from 1"),
        ("when: {if: {}}", "mine.yaml:1, when: is {'if': {}}; accepted: a list of conditions, as - {if: {model.num_la"),
        ("when:\n- {if: {model.beta: 1}}", "mine.yaml:2, when: has if; accepted: if with set, or if with skip: true"),
        ("when:\n- {if: {model.beta: 1}, then: {}}", "unknown part of a condition 'then'; known: if, set, skip"),
        ("when: [{if: {model.beta: 1}, set: {}}]", "if and set name no setting"),
        ("when: [{if: {model.beta: 1}, skip: false}]", "skip is False; accepted: true, or leave it out"),
        ("when: [{if: {model.beta: x}, skip: true}]", "mine.yaml:1, when: model.beta is 'x' (str); accepted: a value "),
        ("when: [{if: {model.beat: 1}, skip: true}]", "mine.yaml:1, when: unknown setting 'model.beat'; did you mean"),
        ("when: [{if: {model.beta: 1}, skip: true}]", "mine.yaml: its conditions skip every trial; remove one of th"),
        ("when: [{if: {model.beta: [2, 3]}, skip: true}]", ":1, when: no trial has model.beta 2.0 or 3.0; name values"),
        ("when: [{if: {seed: 1}, set: {model.beta: 2}}]", "a condition on seed sets other settings"),
        ("when: [{if: {model.text: true}, set: {model.beta: 2}}]\ngrid: {model.beta: [1, 2]}", "grid and set by when"),
        ("when:\n- {if: {model.text: true}, set: {model.beta: 2}}\n- {if: {model.audio: true}, set: {model.beta: 3}}",
         "mine.yaml:3, when: model.beta becomes 3.0, and 2.0 at mine.yaml:2, when, in one trial; make the conditions"),
        (f"grid: {{model.beta: {list(range(200))}, model.num_layers: {list(range(1, 60))}}}", "more than 10,000 trial"),
    ],
)
def test_bad_grid_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base:\n  loss:\n    num_points: 4\n    importance: 2",
         "mine.yaml:4, base: loss.importance is 2.0; accepted: a share from 0 to 1"),
        ("base: {loss: {num_points: 4,\n  oversampling: 0.5,\n  importance: 2}}",
         "mine.yaml:2, base: loss.oversampling is 0.5; accepted: a number from 1 up"),
        ("grid:\n  loss.importance:\n  - 0.5\n  - 2", "mine.yaml:4, grid: loss.importance is 2.0; accepted"),
        ("base:\n  loss.num_points: 3\ngrid:\n  loss.importance: [0.5,\n    3]",
         "mine.yaml:5, grid: loss.importance is"),
        ("cases:\n  a:\n    loss.bce: 1\n  b:\n    loss:\n      dice: 2\n      bce: -1",
         "mine.yaml:7, case 'b': loss.bce is -1.0; accepted: a number from 0 up"),
        ("zip:\n  model.beta: [1, 2]\n  model.num_layers:\n  - 1\n  - 0",
         "mine.yaml:5, zip: model.num_layers is 0; acc"),
        ("zip:\n  model.beta: [1, 2]\n  model.num_layers: [1]", "mine.yaml:3, zip: model.beta has 2, model.num_layers"),
        ("base:\n  model.trained: fusion\n  model.decoder_weights: mask2former\ncases:\n  x: {}\n  y:\n"
         "    model.decoder_weights: random", "mine.yaml:7, case 'y': model.trained is fusion, which would leave"),
        ("when:\n- if: {seed: 0}\n  skip: true\n- if:\n    model.beta: 1\n  set:\n    train.epochs: 3\n"
         "    train.clip_norm: 0\nseeds: [0, 1]",
         "mine.yaml:8, when: train.clip_norm is 0.0; accepted: a number above 0"),
        ("base:\n  train:\n    epochs: 0\n    learning_rate: -1", "mine.yaml:3, base: train.epochs is 0; accepted"),
        ("base:\n  train.clip_norm: 0\n  model.dropout: 1\n", "mine.yaml:2, base: train.clip_norm is 0.0; accepted"),
        ("resources:\n  cpus: 1\n  workers: 0", "mine.yaml:3, resources: resources.workers is 0; accepted: a whole"),
        ("base: &b\n  loss.importance: 4\ncases:\n  a: {<<: *b, model.beta: 2}",
         "mine.yaml:2, case 'a': loss.importance"),
        ("base:\n  train.epochs: 4\n  model.head: released", "mine.yaml:3, base: model.head is released, which"),
    ],
)  # fmt: skip
def test_value_out_of_range_is_refused_with_its_own_line_and_full_name(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refused(tmp_path, text)


def test_value_of_the_command_line_is_refused_as_such(tmp_path: Path) -> None:
    message = refused(tmp_path, "base:\n  loss:\n    num_points: 4", {"loss.importance": 2.0})
    assert message == "--set: loss.importance is 2.0; accepted: a share from 0 to 1"
    trained = refused(tmp_path, "base: {model.beta: 2}", {"model.trained": "fusion"})
    assert trained.startswith("--set: model.trained is fusion, which would leave")


def test_override_of_a_varied_setting_is_refused(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"no grid file gone\.yaml; .*encoders, layers, .*proof, .*smoke, table3"):
        read_grid("gone.yaml")


def test_grid_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_bytes("description: caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"g\.yaml is not UTF-8 text \(.*\); save it as UTF-8"):
        read_grid(str(tmp_path / "g.yaml"))


MIXED = """
base: {train: {epochs: 0, init: file}}
grid:
  model.head: [eemc, released]
  model.num_queries: [3, 5]
when:
  - {if: {model.head: eemc}, set: {model.beta: 0.5}}
  - {if: {model.text: false}, skip: true}
cases:
  plain: {}
  blind: {model.decoder_layers: 1}
"""


def test_axis_may_mix_heads_with_different_settings(tmp_path: Path) -> None:
    text = MIXED.replace("  - {if: {model.text: false}, skip: true}\n", "")
    trials = read_grid(grid_file(tmp_path, text)).trials
    assert [trial.name for trial in trials[:2]] == [f"plain, head eemc, num_queries {number}" for number in (3, 5)]
    assert [trial.config.model.head for trial in trials] == ["eemc", "eemc", "released", "released"] * 2
    assert flat(trials[0].config)["model.beta"] == 0.5 and "model.beta" not in flat(trials[2].config)
    assert len({trial.key("") for trial in trials}) == len(trials)


def test_setting_of_another_head_is_refused_with_the_nearest_of_this_one(tmp_path: Path) -> None:
    base = "base:\n  train: {epochs: 0, init: file}\n"
    told = refused(tmp_path, base + "  model.num_query: 3\n  model.head: released\n")
    assert told == "mine.yaml:3, base: unknown setting 'model.num_query'; did you mean 'model.num_queries'?"
    told = refused(tmp_path, base + "  model.chanels: 3\ngrid:\n  model.head: [released, eemc]\n")
    assert told == "mine.yaml:3, base: unknown setting 'model.chanels'; did you mean 'model.channels'?"
    told = refused(tmp_path, base + "  model.num_layers: 3\ngrid:\n  model.head: [eemc, released]\n")
    assert told == ("mine.yaml:3, base: the head 'released' has no setting 'model.num_layers'; did you mean "
                    "'model.num_queries'?")  # fmt: skip
    told = refused(tmp_path, "base: {model.num_layers: 3}", {"model.head": "released", "train.epochs": 0})
    assert told.startswith("mine.yaml:1, base: unknown setting 'model.num_layers'; did you mean")


@pytest.mark.parametrize(("text", "told"), [
    ("base: {model: {head: eemk}}", "mine.yaml:1, base: model.head is 'eemk'; did you mean 'eemc'?"),
    ("grid:\n  model.head:\n  - eemc\n  - 3",
     "mine.yaml:4, grid: model.head is 3; accepted: the name of a head, e.g. eemc"),
    ("search:\n  budget: 3\n  ranges:\n    model.head: {choice: [eemc, other]}",
     f"mine.yaml:4, search: model.head is 'other'; known: {', '.join(sorted(names()))}"),
])  # fmt: skip
def test_unknown_head_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert refused(tmp_path, text) == told
