"""The files of a hub repository: where they are found, and what of them is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from extract.encoders.hub_folder import HubFolder
from extract.encoders.weights import NotFetched, OtherArchitecture, WeightSource
from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
HEAD = (r"cls\..*",)


def bert() -> tuple[Any, Any, Any]:
    ensure_torchvision()
    from transformers import BertConfig, BertForMaskedLM, BertModel

    return BertConfig, BertForMaskedLM, BertModel


def folder_of(tmp_path: Path, **options: Any) -> HubFolder:
    return HubFolder(repository="someone/small-bert", source=WeightSource(folder=tmp_path, **options))


def network_of(files: HubFolder) -> Any:
    config, _, model = bert()
    return files.network(model, files.config(config, {}), HEAD, add_pooling_layer=False)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    config, with_head, _ = bert()
    torch.manual_seed(0)
    model = with_head(config(**SIZES))
    model.save_pretrained(tmp_path / "small-bert")
    return tmp_path, model


def equal(one: Any, other: Any) -> bool:
    found, expected = one.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_folder_gives_sizes_and_weights_of_the_model_below_a_head(saved: tuple[Path, Any]) -> None:
    files = folder_of(saved[0])
    assert equal(network_of(files), saved[1].bert)
    assert files.stamp() == file_stamp(saved[0] / "small-bert" / "model.safetensors")


def old_names(path: Path) -> None:
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
             for name, value in load_file(path / "model.safetensors").items()}  # fmt: skip
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def pickled(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def sharded(path: Path, pickle: bool = False) -> None:
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    stem, end, save = ("pytorch_model", "bin", torch.save) if pickle else ("model", "safetensors", save_file)
    names = sorted(state)
    places = {name: f"{stem}-0000{1 + index % 2}-of-00002.{end}" for index, name in enumerate(names)}
    for shard in set(places.values()):
        save({name: state[name] for name in names if places[name] == shard}, path / shard)
    (path / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("change", [old_names, pickled, sharded, lambda path: sharded(path, pickle=True)])
def test_older_names_pickles_and_shards_give_the_same_weights(change: Any, saved: tuple[Path, Any]) -> None:
    change(saved[0] / "small-bert")
    assert equal(network_of(folder_of(saved[0])), saved[1].bert)


def test_a_stamp_names_all_shards(saved: tuple[Path, Any]) -> None:
    sharded(saved[0] / "small-bert")
    first = folder_of(saved[0]).stamp()
    shard = saved[0] / "small-bert" / "model-00002-of-00002.safetensors"
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
    assert folder_of(saved[0]).stamp() != first


def test_a_missing_shard_is_named(saved: tuple[Path, Any]) -> None:
    sharded(saved[0] / "small-bert")
    (saved[0] / "small-bert" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has none of small-bert/model-00002-of-00002\.safetensors"):
        folder_of(saved[0]).tensor_files()


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "", 3])
def test_an_index_names_only_files_beside_it(shard: object, saved: tuple[Path, Any]) -> None:
    index = saved[0] / "small-bert" / "model.safetensors.index.json"
    (saved[0] / "small-bert" / "model.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match="no file beside it; fetch the files again by hf download someone/small"):
        folder_of(saved[0]).tensor_files()


def changed(path: Path, change: Any) -> None:
    state = load_file(path / "small-bert" / "model.safetensors")
    change(state)
    save_file(state, path / "small-bert" / "model.safetensors")


NORM = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize(("change", "wrong"), [
    (lambda state: state.pop(NORM), "lacks embeddings.LayerNorm.weight"),
    (lambda state: state.update(odd=torch.zeros(1)), "has the unknown odd"),
    (lambda state: state.update({NORM: torch.zeros(5)}), "has another size of embeddings.LayerNorm.weight"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Any, wrong: str, saved: tuple[Path, Any], caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changed(saved[0], change)
    with pytest.raises(OtherArchitecture, match=f"the file {wrong}; fetch"):
        network_of(folder_of(saved[0]))
    assert not caplog.records and capsys.readouterr() == ("", ""), "transformers reports it once more"
    assert logging.getLogger("transformers").level != logging.CRITICAL


def test_a_config_of_another_network_is_refused(saved: tuple[Path, Any]) -> None:
    path = saved[0] / "small-bert" / "config.json"
    path.write_text(path.read_text().replace('"bert"', '"t5"'))
    with pytest.raises(OtherArchitecture, match="describes a 't5', no 'bert'"):
        network_of(folder_of(saved[0]))
    path.write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        network_of(folder_of(saved[0]))
    path.unlink()
    with pytest.raises(WeightsError, match=r"has none of small-bert/config\.json"):
        network_of(folder_of(saved[0]))


def test_sizes_are_the_published_ones_without_files(tmp_path: Path) -> None:
    config, _, _ = bert()
    for files in (folder_of(tmp_path), folder_of(tmp_path, kind="random"),
                  HubFolder(repository="a/b", source=WeightSource(kind="random"))):  # fmt: skip
        assert files.config(config, SIZES).hidden_size == 8


def test_random_weights_take_the_sizes_of_a_folder(saved: tuple[Path, Any]) -> None:
    files = folder_of(saved[0], kind="random", seed=3)
    assert files.config(bert()[0], {}).hidden_size == 8
    assert files.stamp() == "random:3" and files.tensor_files() == []
    assert equal(network_of(files), network_of(files))
    assert not equal(network_of(files), saved[1].bert)


def test_a_gated_repository_says_how_to_get_its_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = HubFolder(repository="some/one", source=WeightSource(fetch=False), gated=True)
    with pytest.raises(NotFetched, match=r"needs a token \(accept the licence at hf.co/some/one, then hf auth login"):
        files.tensor_files()
    assert "hf auth login" in files.fetch


def test_parts_are_those_of_the_folder(saved: tuple[Path, Any]) -> None:
    weights, config = folder_of(saved[0]).parts("bert", lambda: None, "config.json")
    assert weights.find() == saved[0] / "small-bert" / "model.safetensors"
    assert config.name == "bert, config.json" and config.find() == saved[0] / "small-bert" / "config.json"
    assert config.load() is not None
    assert folder_of(saved[0], kind="random").parts("bert", lambda: None)[0].find() is None
