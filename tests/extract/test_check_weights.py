"""What refavs-extract --check-weights says of a folder."""

import dataclasses
import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extract.cli import main
from extract.encoders.check_weights import check_weights
from extract.encoders.presets import SHIPPED, preset_named
from tests.extract.hf_weights import write_mask2former, write_roberta
from tests.extract.test_pretrained_path import SMALL
from tests.extract.test_pretrained_streams import SMALL as SMALL_TEXT

PRESET = dataclasses.replace(preset_named("base"), visual=SMALL, text=SMALL_TEXT)
VISUAL, DECODER, AUDIO, TEXT, TOKENS = (
    "visual, Swin and pixel decoder", "head, transformer decoder", "audio, VGGish", "text, RoBERTa", "text, tokenizer"
)


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    names = (VISUAL, DECODER, AUDIO, TEXT, TOKENS)
    return {name: line[len(name):].strip() for line in capsys.readouterr().out.splitlines() for name in names
            if line.startswith(name)}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything but the sound's weights, which are large."""
    folder = tmp_path_factory.mktemp("weights")
    write_mask2former(folder / "mask2former", SMALL, num_labels=150, dim_feedforward=2048)
    write_roberta(folder / "roberta-base", SMALL_TEXT, ["The star."])
    return folder


@pytest.mark.long
def test_each_file_is_found_with_its_hash_or_what_to_fetch(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_weights(PRESET, whole) == 2
    lines = lines_of(capsys)
    path = whole / "mask2former" / "model.safetensors"
    expected = f"found: {path}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert lines[VISUAL] == lines[DECODER] == expected
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
    ("truncated", "truncated: "), ("cut header", "truncated: "), ("pickle", "pickle: "), ("other", "damaged: "),
    ("gone", "missing; fetch it by: hf download facebook/mask2former-swin-base-ade-semantic --local-dir"),
])  # fmt: skip
def test_damage_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, state: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    damaged(tmp_path, damage)
    assert check_weights(PRESET, tmp_path) == 2
    lines = lines_of(capsys)
    assert lines[VISUAL].startswith(state) and lines[DECODER].startswith(state)
    assert lines[TEXT].startswith("wrong size: ") and "belong to another architecture" in lines[TEXT]
    assert lines[TOKENS].startswith("damaged: ") and "cannot be read" in lines[TOKENS]
    assert lines[AUDIO].startswith("refused pickle: ") and not (tmp_path / "ran").exists()
    assert all("fetch it by: " in line for line in lines.values())


def test_command_needs_no_source_and_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-weights", str(tmp_path), "--preset", "tiny"]) == 2
    assert "missing; fetch it by: cp " in capsys.readouterr().out
    shutil.copy(SHIPPED / "tiny" / "visual.safetensors", tmp_path)
    assert main(["--check-weights", str(tmp_path), "--preset", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "audio, VGGish                  not needed" in shown and f"{tmp_path} has all that refavs-extract" in shown
    assert main(["--check-weights", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "SOURCE and STORE are required" in capsys.readouterr().err
