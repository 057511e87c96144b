"""A search: its section, the points it suggests, and that its continuation depends only on the ledger."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.grid.expand import Grid, expand
from experiments.grid.file import parse_yaml
from experiments.grid.search_space import SearchPlan
from experiments.records.ledger import Entry, Ledger
from experiments.records.record_types import write_json
from experiments.sweep.search import Search, refuse_unmeasured
from refavs.errors import ConfigError
from tests.experiments.small_store import make_store

RANGES = """
  ranges:
    train: {learning_rate: {loguniform: [1e-5, 1e-2]}}
    model.beta: {uniform: [0, 2]}
    model.num_layers: {int: [1, 6]}
    train.precision: {choice: [fp32, bf16]}
"""
EPOCHS = "base: {train.epochs: 9}\n"


def grid_of(search: str, more: str = EPOCHS) -> Grid:
    where = "s.yaml"
    return expand("s", parse_yaml(f"{more}search:{search}", where), where, {})


def search_in(folder: Path, search: str, more: str = EPOCHS) -> Search:
    return Search(grid_of(search, more), Ledger(folder), lambda trial: "store")


def goodness(entry: Entry) -> float:
    """Best at a learning rate of 1e-3 and a beta of 1."""
    config = entry.trial.config
    return float(1 - abs(np.log10(config.train.learning_rate) + 3) / 4 - abs(config.model.beta - 1) / 4)


def record(epoch: int, value: float) -> dict[str, Any]:
    return {"epoch": epoch, "metrics": {"val/J": value, "val/S": value}}


def finish(entry: Entry, value: float, state: Any = "finished", epochs: int = 1) -> None:
    """Leaves what a trial leaves in the ledger."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record(epoch, value)) + "\n" for epoch in range(1, epochs + 1)]
    (entry.folder / "metrics.jsonl").write_text("".join(lines))
    write_json(entry.folder / "status.json", {"state": state})


def settings_of(entries: list[Entry]) -> list[tuple[Any, ...]]:
    configs = [entry.trial.config for entry in entries]
    return [(c.train.learning_rate, c.model.beta, c.model.num_layers, c.train.precision, c.seed) for c in configs]


def run_all(search: Search) -> list[Entry]:
    """One trial after another."""
    found = []
    while (entry := search.suggest()) is not None:
        finish(entry, goodness(entry))
        found.append(entry)
    return found


@pytest.mark.long
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_search_suggests_its_budget_within_the_ranges_and_each_point_once(tmp_path: Path, method: str) -> None:
    search = search_in(tmp_path, f"\n  budget: 30\n  method: {method}{RANGES}")
    entries = run_all(search)
    assert len(entries) == len({entry.key for entry in entries}) == 30 and search.num_to_come == 0
    rates, betas, layers, precisions, _ = map(np.array, zip(*settings_of(entries), strict=True))
    assert rates.min() >= 1e-5 and rates.max() <= 1e-2 and betas.min() >= 0 and betas.max() <= 2
    assert set(layers) == set(range(1, 7)) and set(precisions) == {"fp32", "bf16"}
    assert np.median(rates) < 2e-3  # uniform draws would lie around 5e-3
    assert entries[3].trial.name.startswith(f"point 3, learning_rate {rates[3]}, beta {betas[3]}, num_layers")
    assert {entry.trial.config.train.epochs for entry in entries} == {9}


@pytest.mark.long
def test_tpe_finds_better_points_than_chance(tmp_path: Path) -> None:
    last = {
        method: [goodness(entry) for entry in run_all(search_in(tmp_path / method, text))[20:]]
        for method in ("tpe", "random") for text in [f"\n  budget: 40\n  method: {method}{RANGES}"]
    }  # fmt: skip
    assert np.mean(last["tpe"]) > np.mean(last["random"]) + 0.1


@pytest.mark.long
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_resumed_or_extended_search_suggests_the_same_points(tmp_path: Path, method: str) -> None:
    def text(budget: int) -> str:
        return f"\n  budget: {budget}\n  method: {method}{RANGES}"

    whole = settings_of(run_all(search_in(tmp_path / "whole", text(18))))
    first = search_in(tmp_path / "parts", text(14))
    for _ in range(13):
        finish(entry := first.suggest(), goodness(entry))  # type: ignore[arg-type]
    assert first.suggest() is not None  # noted, then killed before it ran
    again = search_in(tmp_path / "parts", text(14))
    assert again.suggest() is None and settings_of(again.entries) == whole[:14]
    assert [entry.state for entry in again.entries] == ["finished"] * 13 + ["new"]
    finish(again.entries[-1], goodness(again.entries[-1]))
    grown = search_in(tmp_path / "parts", text(18))
    assert grown.num_to_come == 4
    run_all(grown)
    assert settings_of(grown.entries) == whole
    assert len(search_in(tmp_path / "parts", text(5)).entries) == 5


def test_random_points_do_not_hang_on_results(tmp_path: Path) -> None:
    text = f"\n  budget: 6\n  method: random{RANGES}"
    found = run_all(search_in(tmp_path / "a", text))
    search = search_in(tmp_path / "b", text)
    assert [search.suggest().key for _ in range(6)] == [entry.key for entry in found]  # type: ignore[union-attr]
    other = search_in(tmp_path / "c", f"\n  budget: 6\n  method: random\n  seed: 1{RANGES}")
    assert not {entry.key for entry in run_all(other)} & {entry.key for entry in found}


@pytest.mark.parametrize(("method", "fuse", "sizes"), [
    ("random", 2, [2, 2, 1]), ("random", "auto", [5]), ("tpe", "auto", [1] * 5), ("tpe", 3, [3, 2])
])  # fmt: skip
def test_points_that_train_together_are_suggested_together(
    tmp_path: Path, method: str, fuse: Any, sizes: list[int]
) -> None:
    search = search_in(tmp_path, f"\n  budget: 5\n  method: {method}{RANGES}")
    found = [len(search.suggest_some(fuse)) for _ in sizes]
    assert found == sizes and search.suggest_some(fuse) == []


def test_every_seed_of_a_point_is_a_trial_and_its_value_their_mean(tmp_path: Path) -> None:
    search = search_in(tmp_path, f"\n  budget: 2{RANGES}", f"{EPOCHS}seeds: [3, 4]\n")
    assert search.num_to_come == 4
    entries = [search.suggest() for _ in range(4)]
    assert [entry.trial.config.seed for entry in entries] == [3, 4, 3, 4]  # type: ignore[union-attr]
    assert settings_of(entries[:1])[0][:-1] == settings_of(entries[1:2])[0][:-1]  # type: ignore[arg-type]
    for entry, value in zip(entries, (0.2, 0.4, 0.9), strict=False):
        finish(entry, value)  # type: ignore[arg-type]
    assert search.best() == (entries[0].trial.name, pytest.approx(0.3))  # type: ignore[union-attr]
    finish(entries[3], 0.1)  # type: ignore[arg-type]
    assert search.best() == (entries[2].trial.name, pytest.approx(0.5))  # type: ignore[union-attr]
    lower = search_in(tmp_path, f"\n  budget: 2\n  metric: val/S{RANGES}", f"{EPOCHS}seeds: [3, 4]\n")
    assert lower.best() == (entries[0].trial.name, pytest.approx(0.3))  # type: ignore[union-attr]


def test_few_points_are_each_tried_once_and_then_the_search_ends(tmp_path: Path) -> None:
    ranges = "{model.num_layers: {int: [1, 3]}, model.text: {choice: [true, false]}}"
    text = f"\n  budget: 50\n  method: random\n  ranges: {ranges}"
    skipping = f"{EPOCHS}when: [{{if: {{model.num_layers: 2, model.text: false}}, skip: true}}]\n"
    search = search_in(tmp_path, text, skipping)
    found = {(e.trial.config.model.num_layers, e.trial.config.model.text) for e in _drain(search)}
    assert found == {(1, True), (1, False), (2, True), (3, True), (3, False)}
    assert search.suggest() is None and search.num_to_come == 0


def _drain(search: Search) -> list[Entry]:
    found = []
    while (entry := search.suggest()) is not None:
        finish(entry, 0.5, "failed")
        found.append(entry)
    return found


ASHA = f"\n  budget: 9\n  method: tpe\n  asha: {{min_epochs: 1, reduction: 3}}{RANGES}"


def test_asha_gives_up_all_but_the_best_third_at_each_rung(tmp_path: Path) -> None:
    search = search_in(tmp_path, ASHA)
    entries = [search.suggest() for _ in range(9)]
    values = [0.5, 0.1, 0.6, 0.2, 0.7, 0.3, 0.65, 0.4, 0.66]
    told = [search.report(entry, [record(1, value)]) for entry, value in zip(entries, values, strict=True)]
    assert [not reason for reason in told] == [True, False, True, False, True, False, True, False, True]
    assert told[1] == "given up after epoch 1: its val/J of 0.1 is number 2 of 2 so far, and one in 3 continues"
    assert search.report(entries[0], [record(2, 0.0)]) == ""  # no rung
    assert search.report(entries[2], [record(3, 0.9)]) == ""
    assert search.report(entries[0], [record(3, 0.8)]).startswith("given up after epoch 3")
    assert search.report(entries[4], [record(9, 0.0)]) == ""  # it is done anyway


def test_pruned_trials_are_known_from_the_ledger(tmp_path: Path) -> None:
    search = search_in(tmp_path, ASHA)
    first, second, _ = (search.suggest() for _ in range(3))
    finish(first, 0.8, "running", epochs=2)  # type: ignore[arg-type]
    finish(second, 0.1, "pruned")  # type: ignore[arg-type]
    again = search_in(tmp_path, ASHA)
    assert [entry.state for entry in again.entries] == ["running", "pruned", "new"]
    assert again.report(again.entries[0], [record(1, 0.8), record(2, 0.8)]) == ""
    assert "its val/J of 0.7 is number 2 of 3" in again.report(again.entries[2], [record(1, 0.7)])
    assert again.suggest() is not None and again.best() is None


def test_rung_decisions_are_kept(tmp_path: Path) -> None:
    search = search_in(tmp_path, ASHA)
    entries = [search.suggest() for _ in range(3)]
    for entry, value in zip(entries, (0.5, 0.1, 0.9), strict=True):
        finish(entry, value, "running")  # type: ignore[arg-type]
    passed, gone, best = (search.report(e, [record(1, v)]) for e, v in zip(entries, (0.5, 0.1, 0.9), strict=True))
    assert (passed, best) == ("", "") and gone.startswith("given up after epoch 1")
    again = search_in(tmp_path, ASHA)
    first, second, _ = again.entries
    assert again.report(first, [record(1, 0.5)]) == ""  # of all that are known now it would be the second of three
    assert again.report(second, [record(1, 0.1)]) == gone
    again.ledger.discard(first)
    assert "number 2 of 3" in search_in(tmp_path, ASHA).report(first, [record(1, 0.5)])


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_conflicting_values_are_not_a_point(tmp_path: Path, method: str) -> None:
    ranges = "{train.sampling: {choice: [dimension, uniform]}, train.acoustic_temporal_weight: {uniform: [1, 3]}}"
    found = _drain(search_in(tmp_path, f"\n  budget: 8\n  method: {method}\n  ranges: {ranges}"))
    assert [entry.trial.config.train.sampling for entry in found] == ["dimension"] * 8


def test_lower_is_better_where_it_is(tmp_path: Path) -> None:
    search = search_in(tmp_path, ASHA.replace("method: tpe", "metric: val/S"))
    first, second = search.suggest(), search.suggest()
    assert search.report(first, [record(1, 0.1)]) == ""  # type: ignore[arg-type]
    assert "its val/S of 0.2 is number 2 of 2" in search.report(second, [record(1, 0.2)])  # type: ignore[arg-type]


def test_metric_that_the_store_cannot_give_is_refused(tmp_path: Path) -> None:
    known = make_store(tmp_path / "val", {"train": 1, "val": 1})
    for metric in ("val/J", "val/S", "val/acoustic/J"):
        refuse_unmeasured(search_plan(metric), known)
    with pytest.raises(ConfigError, match=r"by val/semantic/J, and .*val has there acoustic, spatial; name another"):
        refuse_unmeasured(search_plan("val/semantic/J"), known)
    with pytest.raises(ConfigError, match=r"by val/J, and .*none has no validation split with masks; name another"):
        refuse_unmeasured(search_plan("val/J"), make_store(tmp_path / "none", {"train": 1}))


def search_plan(metric: str) -> SearchPlan:
    return grid_of(f"\n  budget: 3\n  metric: {metric}{RANGES}").search.plan  # type: ignore[union-attr]


def test_other_ranges_or_settings_are_another_search(tmp_path: Path) -> None:
    run_all(search_in(tmp_path, f"\n  budget: 3{RANGES}"))
    assert len(search_in(tmp_path, f"\n  budget: 3\n  method: random\n  metric: val/F{RANGES}").points) == 3
    assert search_in(tmp_path, f"\n  budget: 3{RANGES.replace('[0, 2]', '[0, 3]')}").points == []
    assert search_in(tmp_path, f"\n  budget: 3{RANGES}", "base: {train.epochs: 8}\n").points == []
    assert len(list((tmp_path / "search").iterdir())) == 1


def test_grid_of_a_search_has_examples_at_every_end() -> None:
    grid = grid_of(f"\n  budget: 3{RANGES}")
    assert grid.trials == () and len(grid.kinds) == 1 + 4
    assert {trial.config.model.num_layers for trial in grid.kinds} == {1, 6}
    marked = grid.with_kinds(lambda trial: dataclasses.replace(trial, digests={"init": "0f"}))
    (trial,) = marked.search.trials(0, marked.search.plan.draw(0, 0))  # type: ignore[union-attr]
    assert trial.digests == {"init": "0f"}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (" 3", "s.yaml:2, search: is 3 (int); accepted: a mapping with ranges and budget"),
        ("\n  budget: 3", "s.yaml:2, search: has no ranges; write for example budget: 20 and ranges: {train.learning_"),
        ("\n  ranges: {model.beta: {uniform: [0, 1]}}", "search: has no budget"),
        ("\n  budget: 0\n  ranges: {model.beta: {uniform: [0, 1]}}", "s.yaml:3, search: budget is 0; accepted: a whol"),
        ("\n  budgets: 3", "s.yaml:3, search: unknown part of search 'budgets'; did you mean 'budget'?"),
        ("\n  budget: 3\n  ranges: {}", "s.yaml:4, search: ranges names no setting"),
        ("\n  budget: 3\n  ranges: {model.beat: {uniform: [0, 1]}}", "4, search: unknown setting 'model.beat'; did yo"),
        ("\n  budget: 3\n  ranges: {model.beta: {unifrom: [0, 1]}}", "unknown kind of range for model.beta 'unifrom';"),
        ("\n  budget: 3\n  ranges: {model.beta: [0, 1]}", "is [0, 1] (list); accepted: one of uniform, loguniform, in"),
        ("\n  budget: 3\n  ranges: {model.beta: {uniform: [1, 0]}}", "model.beta is uniform [1, 0]; accepted: the low"),
        ("\n  budget: 3\n  ranges: {model.beta: {loguniform: [0, 1]}}", "two numbers above 0, as [1e-5, 1e-3]"),
        ("\n  budget: 3\n  ranges: {model.num_layers: {int: [1, 2.5]}}", "two whole numbers, as [1, 6]"),
        ("\n  budget: 3\n  ranges: {model.num_layers: {uniform: [1, 2]}}", "model.num_layers is 1.0 (float); accepted"),
        ("\n  budget: 3\n  ranges: {model.num_layers: {int: [0, 2]}}",
         "s.yaml:4, search: model.num_layers is 0; accep"),
        ("\n  budget: 3\n  ranges: {model.text: {choice: [true]}}", "model.text is [True]; accepted: a list of two va"),
        ("\n  budget: 3\n  ranges: {model.beta: {choice: [1, 1]}}", "model.beta lists 1.0 twice; keep one"),
        ("\n  budget: 3\n  ranges: {model.beta: {choice: [1, x]}}", "model.beta is 'x' (str); accepted: a value of ty"),
        ("\n  budget: 3\n  ranges: {seed: {int: [0, 3]}}", "seed cannot be searched; set it in base, or list seeds un"),
        (f"\n  budget: 3\n  method: bayes{RANGES}", "s.yaml:4, search: method is 'bayes'; known: random, tpe"),
        (f"\n  budget: 3\n  metric: val/I{RANGES}", "metric is 'val/I'; did you mean 'val/"),
        (f"\n  budget: 3\n  asha: {{reduction: 1}}{RANGES}", "asha.reduction is 1; accepted: a whole number from 2"),
        (f"\n  budget: 3\n  asha: {{min_epoch: 1}}{RANGES}", "unknown part of asha 'min_epoch'; did you mean 'min_epo"),
        (f"\n  budget: 3\n  asha: {{min_epochs: 9}}{RANGES}", "asha.min_epochs is 9, but trials have 9 epochs; accept"),
        (f"\n  budget: 3\n  asha: {{}}{RANGES}seeds: [0, 1]", "asha compares single trials, and a point has 2 seeds; "),
        (f"\n  budget: 3{RANGES}grid: {{model.text: [true]}}", "9, grid: a search has no grid; write its values as a "),
        (f"\n  budget: 3{RANGES}when: [{{if: {{model.text: true}}, set: {{model.beta: 1}}}}]", "is set by when and se"),
        (f"\n  budget: 99999{RANGES}", "s.yaml:3, search: more than 10,000 trials; lower the budget"),
        ("\n  budget: 3\n  ranges:\n    model.beta: {uniform: [0, 1]}\n    loss.importance:\n      uniform:\n"
         "      - 0\n      - 2", "s.yaml:9, search: loss.importance is 2.0; accepted: a share from 0 to 1"),
        ("\n  budget: 3\n  ranges: {model.num_layers: {choice: [1,\n    0]}}",
         "s.yaml:5, search: model.num_layers is 0; acc"),
        (f"\n  budget: 3\n  asha:\n    reduction: 2\n    min_epochs: 9{RANGES}",
         "s.yaml:6, search: asha.min_epochs is 9, but"),
    ],
)
def test_bad_search_is_refused(search: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid_of(search)
    assert message in str(caught.value)
