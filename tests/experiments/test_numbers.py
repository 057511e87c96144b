"""Number edge cases: words that YAML versions read differently, seeds that torch rejects, zeros."""

import dataclasses

import pytest

from experiments.grid.config import MOST_SEED, TrainConfig, TrialConfig
from experiments.grid.expand import expand, parse_overrides, read_grid
from experiments.grid.file import parse_yaml
from experiments.grid.trial import Trial
from extract.encoders.weights import WeightSource
from refavs.config import replace
from refavs.errors import ConfigError

BEFORE_AND_NOW = {
    "010": "8 (octal) in YAML 1.1 and 10 in YAML 1.2; write 8 or 10",
    "-010": "-8 (octal) in YAML 1.1 and -10 in YAML 1.2; write -8 or -10",
    "01": "1; write 1",
    "00": "0; write 0",
    "08": "text in YAML 1.1 and 8 in YAML 1.2; write 8",
    "00.5": "0.5; write 0.5",
    "1:30": "90 (in base 60) in YAML 1.1 and text in YAML 1.2; write 90",
    "1:30.5": "90.5 (in base 60) in YAML 1.1 and text in YAML 1.2; write 90.5",
    "1_000": "1000 in YAML 1.1 and text in YAML 1.2; write 1000",
    "1_0.5": "10.5 in YAML 1.1 and text in YAML 1.2; write 10.5",
    "0b11": "3 (binary) in YAML 1.1 and text in YAML 1.2; write 3",
    "0o10": "text in YAML 1.1 and 8 in YAML 1.2; write 8",
    "-0x1F": "-31 in YAML 1.1 and text in YAML 1.2; write -31",
    "-.5": "text in YAML 1.1 and -0.5 in YAML 1.2; write -0.5",
    "yes": "true in YAML 1.1 and text in YAML 1.2; write true",
    "No": "false in YAML 1.1 and text in YAML 1.2; write false",
    "ON": "true in YAML 1.1 and text in YAML 1.2; write true",
    "off": "false in YAML 1.1 and text in YAML 1.2; write false",
    "2020-01-01": "a date in YAML 1.1 and text in YAML 1.2; write it out plainly",
    "1" + ":30" * 60_000: "a number (in base 60) in YAML 1.1 and text in YAML 1.2; write it out plainly",
    "0" * 190_000: "a number; write it out plainly",
}


@pytest.mark.parametrize("word", BEFORE_AND_NOW, ids=lambda word: word[:12])
@pytest.mark.parametrize("form", ["epochs: {}", "epochs:\n  - 3\n  - {}", "- {{a: [{}]}}"])
def test_word_of_two_meanings_is_refused_with_both(word: str, form: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(form.format(word), "my.yaml")
    shown = word if len(word) < 40 else f"{word[:40]}..."
    line = 1 + form.partition("{}")[0].count("\n")
    text = f": {shown} would be {BEFORE_AND_NOW[word]}"
    assert str(caught.value).startswith(f"my.yaml:{line}{text}")
    assert "in quotes" in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("word", "value"), [
    ("10", 10), ("-3", -3), ("+1", 1), ("0", 0), ("0x1F", 31), ("1e-3", 0.001), ("10e5", 1e6), (".5", 0.5),
    ("1.", 1.0), ("0.0", 0.0), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
    ("text", "text"), ("y", "y"), ("'010'", "010"), ("'no'", "no"), ('"1:30"', "1:30"), ("!!str 010", "010"),
    ("a:b", "a:b"), ("v1_000", "v1_000"),
])  # fmt: skip
def test_word_of_one_meaning_is_taken(word: str, value: object) -> None:
    found = parse_yaml(f"a: {word}", "my.yaml").plain["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["!!int ''", "!!bool maybe", "!!float '1:30'", "!!timestamp x", "!!null x"])
def test_tags_that_do_not_fit_are_one_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml"):
        parse_yaml(f"a: {value}", "my.yaml")


def test_names_of_cases_and_settings_of_the_command_line() -> None:
    """Names are text as they are written; values of --set are read as those of a file."""
    content = parse_yaml("cases:\n  010: {model.beta: 1}\n  no: {model.beta: 2}\n", "my.yaml")
    assert [trial.name for trial in expand("my", content, "my.yaml", {}).trials] == ["010", "no"]
    with pytest.raises(ConfigError, match=r"--set 'train\.epochs=010': 010 would be 8 \(octal\)"):
        parse_overrides(["train.epochs=010"])


def test_seeds_are_those_that_torch_takes(tmp_path) -> None:
    for seeds, text in ((f"[0, {2**64}]", f"a seed is {2**64}; accepted: up to {MOST_SEED}"),
                        ("[01, 010]", "01 would be 1; write 1")):  # fmt: skip
        (tmp_path / "my.yaml").write_text(f"base: {{train.epochs: 1}}\nseeds: {seeds}\n")
        with pytest.raises(ConfigError) as caught:
            read_grid(str(tmp_path / "my.yaml"))
        assert f"{tmp_path}/my.yaml:2" in str(caught.value) and text in str(caught.value)
    for name in ("seed", "train.order_seed"):
        with pytest.raises(ConfigError, match=f"{name} is {2**64}; accepted: a whole number from 0"):
            replace(TrialConfig(), {name: 2**64})
        replace(TrialConfig(), {name: MOST_SEED})
    with pytest.raises(ConfigError, match=f"--seed is {2**64}; accepted"):
        WeightSource(kind="random", seed=2**64)


def test_zero_has_no_sign_in_a_key() -> None:
    made = [Trial(name="a", config=TrialConfig(train=TrainConfig(weight_decay=zero))) for zero in (0.0, -0.0)]
    assert made[0].key("store") == made[1].key("store")
    resolved = replace(TrialConfig(), {"train.weight_decay": -0.0})
    assert str(resolved.train.weight_decay) == "0.0"
    assert dataclasses.replace(made[0], config=resolved).key("store") == made[0].key("store")
    content = parse_yaml("grid: {train.weight_decay: [0.0, -0.0]}", "my.yaml")
    with pytest.raises(ConfigError):  # one trial, written twice
        expand("my", content, "my.yaml", {})


def test_number_beyond_all_floats_is_one_line() -> None:
    with pytest.raises(ConfigError, match="learning_rate is a whole number too large"):
        replace(TrialConfig(), {"train.learning_rate": 10**400})
