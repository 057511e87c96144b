"""The output of refavs-extract --check-weights for a folder."""

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extract.cli import main
from extract.encoders.check_weights import check_weights
from extract.encoders.mask2former import TINY, VisualEncoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.roberta import RobertaEncoder
from extract.encoders.streams import StreamSet
from extract.encoders.vggish import vggish
from extract.encoders.weights import WeightSource
from tests.extract.hf_weights import write_mask2former, write_roberta
from tests.extract.test_pretrained_path import SMALL
from tests.extract.test_pretrained_streams import SMALL as SMALL_TEXT

VISUAL, AUDIO, TEXT, TOKENS = "mask2former", "vggish", "roberta", "roberta, tokenizer"


def streams(folder: Path) -> StreamSet:
    setup = EncoderSetup(weights=WeightSource(folder=folder))
    encoders = (VisualEncoder(VISUAL, SMALL, setup), vggish(setup), RobertaEncoder(TEXT, SMALL_TEXT, setup))
    return StreamSet({encoder.name: encoder for encoder in encoders}, {}, 10)


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    names = (VISUAL, AUDIO, TOKENS, f"{TEXT}  ")
    return {name.strip(): line[len(name):].strip() for line in capsys.readouterr().out.splitlines() for name in names
            if line.startswith(name)}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything but the sound's weights, which are large."""
    folder = tmp_path_factory.mktemp("weights")
    write_mask2former(folder / "mask2former", SMALL, num_labels=150, dim_feedforward=2048)
    write_roberta(folder / "roberta-base", SMALL_TEXT, ["The star."])
    return folder


@pytest.mark.long
def test_each_file_is_listed_with_hash_or_download_command(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_weights(streams(whole), whole) == 2
    lines = lines_of(capsys)
    path = whole / "mask2former" / "model.safetensors"
    assert lines[VISUAL] == f"found: {path}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert lines[TEXT].startswith("found: ") and lines[TOKENS].startswith("found: ")
    assert lines[AUDIO].startswith("missing; fetch it by: curl -L https://") and str(whole) in lines[AUDIO]


def damaged(folder: Path, damage: str) -> None:
    visual, text = folder / "mask2former" / "model.safetensors", folder / "roberta-base" / "model.safetensors"
    content = visual.read_bytes()
    visual.write_bytes({"truncated": content[:-100], "cut header": content[:100], "pickle": pickle.dumps({"a": 1}),
                        "other": b"<html>not found</html>", "gone": content}[damage])  # fmt: skip
    if damage == "gone":
        shutil.rmtree(folder / "mask2former")
    save_file({"roberta.embeddings.word_embeddings.weight": torch.zeros(3)}, text)
    (folder / "roberta-base" / "tokenizer.json").write_text("{}")

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(folder / "ran").touch, ())

    torch.save({"a": Evil()}, folder / "vggish.pth")


@pytest.mark.long
@pytest.mark.parametrize(("damage", "state"), [
    ("truncated", "cannot be used: weights "), ("cut header", "cannot be used: weights "),
    ("pickle", "cannot be used: weights "), ("other", "cannot be used: weights "),
    ("gone", "missing; fetch it by: hf download facebook/mask2former-swin-base-ade-semantic --local-dir"),
])  # fmt: skip
def test_damage_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, state: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    damaged(tmp_path, damage)
    assert check_weights(streams(tmp_path), tmp_path) == 2
    lines = lines_of(capsys)
    assert lines[VISUAL].startswith(state)
    assert "belong to another architecture" in lines[TEXT] and "cannot be read" in lines[TOKENS]
    assert "cannot be read" in lines[AUDIO] and not (tmp_path / "ran").exists()
    assert all("fetch it by: " in line for line in lines.values())


def test_command_needs_no_source_and_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-weights", str(tmp_path), "--preset", "tiny"]) == 2
    assert "missing; fetch it by: cp " in capsys.readouterr().out
    assert TINY.shipped is not None
    shutil.copy(TINY.shipped, tmp_path)
    assert main(["--check-weights", str(tmp_path), "--preset", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert f"{'tiny-vggish':30} not needed" in shown and f"{tmp_path} has all that tiny-swin, tiny-vggish" in shown
    assert main(["--check-weights", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "SOURCE and STORE are required" in capsys.readouterr().err
