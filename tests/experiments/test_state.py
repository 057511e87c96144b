"""A trial's state: whole or not at all, and equal after a round trip."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.state import load_state, read_json, save_state, write_json
from refavs.errors import ConfigError


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    save_state(tmp_path, model, optimizer, 3, [{"epoch": 3}])
    other, other_optimizer = trained(1)
    assert load_state(tmp_path, other, other_optimizer) == (3, [{"epoch": 3}])
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    wanted, found = optimizer.state_dict(), other_optimizer.state_dict()
    assert json.loads(json.dumps(wanted["param_groups"])) == found["param_groups"]
    for index, values in wanted["state"].items():
        assert all(torch.equal(found["state"][index][name], value) for name, value in values.items())


def test_state_keeps_only_the_newest_epoch(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_state(tmp_path, *trained(0), epoch, [])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000002"]


def test_state_that_was_cut_short_is_ignored_and_removed(tmp_path: Path) -> None:
    save_state(tmp_path, *trained(0), 1, [])
    cut = tmp_path / ".epoch-000002.77.partial"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    assert load_state(tmp_path, *trained(1))[0] == 1
    save_state(tmp_path, *trained(0), 2, [])
    assert not cut.exists()


def test_state_written_by_two_processes_is_kept_once(tmp_path: Path) -> None:
    for _ in range(2):
        save_state(tmp_path, *trained(0), 1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001"]


def test_absent_state_is_epoch_zero(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none", *trained(0)) == (0, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_state_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    save_state(tmp_path, *trained(0), 1, [])
    (tmp_path / "epoch-000001" / name).write_bytes(b"{]")
    with pytest.raises(ConfigError, match=rf"epoch-000001 cannot be read .*; remove {tmp_path} to start"):
        load_state(tmp_path, *trained(1))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, *trained(0), 1, [])
    other = nn.Linear(3, 4)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(tmp_path, other, torch.optim.AdamW(other.parameters()))


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2} and read_json(tmp_path / "b.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_damaged_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json is not JSON .*; remove it and run the same command again"):
        read_json(tmp_path / "a.json")
