"""The families of visual encoders: their contract, their grids, and what they say of wrong names and files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extract.cli import main
from extract.encoders.contract import check_encoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.streams import choose_streams
from extract.encoders.weights import OtherArchitecture, WeightSource
from extract.media.pictures import fitted
from refavs.errors import ConfigError, WeightsError
from refavs.steps import Steps
from tests.extract.parity.visual import small_encoder
from tests.support.small_networks import WRITERS

FAMILIES = ("dinov2-small", "dinov2-with-registers-small", "dinov3-vits16", "clip-vit-base-patch32", "pvt-v2-b2",
            "sam-vit-base", "sam2.1-hiera-tiny", "mask2former-swin-tiny-coco-panoptic", "timm:test_resnet.r160_in1k",
            "timm:test_vit.r160_in1k")  # fmt: skip


def setup(folder: Path | None = None, **weights: Any) -> EncoderSetup:
    return EncoderSetup(weights=WeightSource(folder=folder, **weights))


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_relative_keeps_the_contract(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    encoder = make_encoder(name, setup(tmp_path))
    check_encoder(encoder, 2)
    assert encoder.name == name.replace(":", "-")
    assert all(encoder.facts(level)["weights"].startswith("sha256:") for level in encoder.arrays(2))


@pytest.mark.long
@pytest.mark.parametrize("name", ["dinov3-vits16", "sam-vit-base", "sam2.1-hiera-tiny", "timm:test_resnet.r160_in1k"])
def test_bf16_is_close_to_fp32(name: str, tmp_path: Path) -> None:
    encoder, _ = small_encoder(name, tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (1, *encoder.takes.shape), dtype=np.uint8)  # type: ignore[union-attr]
    frames[..., 3:] = 255
    low = make_encoder(name, EncoderSetup(weights=WeightSource(folder=tmp_path), precision="bf16"))
    levels = list(encoder.shapes())
    (one,), (other,) = encoder.encode([frames], levels), low.encode([frames], levels)
    for path in one:
        a, b = (found[path].astype(np.float64).ravel() for found in (one, other))
        assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b), path


@pytest.mark.long
def test_sam_frames_and_map_are_those_of_its_own_preprocessing(tmp_path: Path) -> None:
    encoder, model = small_encoder("sam-vit-base", tmp_path)
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    theirs = SamImageProcessorPil(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    expected = theirs(picture, return_tensors="pt")["pixel_values"]
    frames = fitted(picture, encoder.takes)[None].copy()  # type: ignore[arg-type]
    ours = encoder.takes.normalised(torch.from_numpy(frames))  # type: ignore[union-attr]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    (found,) = encoder.encode([frames], [""])
    reference = model.get_image_embeddings(expected).numpy(force=True)
    np.testing.assert_allclose(found["map"], reference, atol=5e-3, rtol=2e-3)
    assert found["extent"].tolist() == [[4.5, 8.0]]  # 72 of 128 rows, in cells of 16
    assert found["valid"][0, :5].all() and not found["valid"][0, 5:].any()


@pytest.mark.long
def test_sam2_stores_the_map_without_the_vector_of_no_memory(tmp_path: Path) -> None:
    encoder, model = small_encoder("sam2.1-hiera-tiny", tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    (found,) = encoder.encode([frames], ["image"])
    assert found.keys() == {"image/map", "image/no_memory"}
    inputs = encoder.takes.normalised(torch.from_numpy(frames))  # type: ignore[union-attr]
    expected = model.get_image_embeddings(inputs)[-1].numpy(force=True)
    sums = found["image/map"].astype(np.float32) + found["image/no_memory"].astype(np.float32)[:, None, None]
    np.testing.assert_allclose(sums, expected, atol=2e-2)


def test_squares_take_the_preprocessing_of_the_checkpoint(tmp_path: Path) -> None:
    WRITERS["clip-vit-base-patch32"](tmp_path)
    takes = make_encoder("clip-vit-base-patch32", setup(tmp_path)).takes
    assert (takes.mean, takes.std, takes.size) == ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 128)  # type: ignore[union-attr]
    path = tmp_path / "clip-vit-base-patch32" / "preprocessor_config.json"
    path.write_text(json.dumps({"image_std": [1, 0, 1]}))
    with pytest.raises(WeightsError, match="odd image_mean, image_std or resample"):
        _ = make_encoder("clip-vit-base-patch32", setup(tmp_path)).takes


def test_mask2former_takes_sizes_from_its_own_files(tmp_path: Path) -> None:
    name = "mask2former-swin-large-ade-panoptic"  # by its name on the hub, without a line of its own
    assert make_encoder(name, setup(kind="random")).takes.size == 384  # type: ignore[union-attr]
    WRITERS["mask2former-swin-tiny-coco-panoptic"](tmp_path)
    (tmp_path / "mask2former-swin-tiny-coco-panoptic").rename(tmp_path / name)
    for encoder in (make_encoder(f"mask2former:{name[12:]}", setup(tmp_path)),
                    make_encoder(name, setup(tmp_path, kind="random"))):  # fmt: skip
        arrays = encoder.arrays(3)
        assert encoder.name == name and encoder.takes.size == 96  # type: ignore[union-attr]
        assert [spec.shape for spec in arrays["pixel_decoder"]][:2] == [(3, 24, 24, 24), (3, 32, 12, 12)]


def test_unknown_models_of_a_family_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnt50.a1_in1k'; did you mean 'resnet50.a1_in1k'\?"):
        make_encoder("timm:resnt50.a1_in1k", setup(kind="random"))
    with pytest.raises(ConfigError, match=r"called 'swin-bas-ade-semantic'; did you mean 'swin-base-ade-semantic'\?"):
        make_encoder("mask2former:swin-bas-ade-semantic", setup(kind="random"))
    with pytest.raises(ConfigError, match="timm is a family of encoders; name one of them, timm:MODEL"):
        make_encoder("timm", setup(kind="random"))
    with pytest.raises(ConfigError, match=r"refavs\.encoders has no 'vggish:small'"):
        make_encoder("vggish:small", setup(kind="random"))


def test_a_stream_of_a_family_is_found_by_the_name_it_has_in_the_store() -> None:
    streams = choose_streams(["timm:test_resnet.r160_in1k"], Steps(10), lambda name: setup(kind="random"))
    (id,) = streams.streams
    assert id == "visual/timm-test_resnet.r160_in1k"
    again = choose_streams([id.partition("/")[2]], Steps(10), lambda name: setup(kind="random"))
    assert again.streams == streams.streams
    assert [spec.name for spec in streams.streams[id].arrays] == ["res1", "res2", "res3", "res4", "res5"]


@pytest.mark.long
def test_a_timm_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    name = "test_resnet.r160_in1k"
    WRITERS[f"timm:{name}"](tmp_path)
    path = tmp_path / name / "model.safetensors"
    state = load_file(path)
    save_file({key: value for key, value in state.items() if not key.startswith("layer2.0.conv1")}, path)
    with pytest.raises(OtherArchitecture, match=r"another architecture than timm's test_resnet.r160_in1k: it lacks"):
        make_encoder(f"timm:{name}", setup(tmp_path)).weight_parts()[0].load()
    save_file({key: value[:1] for key, value in state.items() if value.ndim}, path)
    with pytest.raises(OtherArchitecture, match="size mismatch"):
        make_encoder(f"timm:{name}", setup(tmp_path)).weight_parts()[0].load()


@pytest.mark.long
def test_missing_damaged_and_whole_weights_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "dinov3-vits16"
    arguments = ["--streams", name, "--check-weights", str(tmp_path)]
    assert main(arguments) == 2
    lines = capsys.readouterr().out
    assert "missing; fetch it by: hf download facebook/dinov3-vits16-pretrain-lvd1689m" in lines
    assert "needs a token (accept the licence" in lines
    WRITERS[name](tmp_path)
    capsys.readouterr()
    assert main(arguments) == 0
    path = tmp_path / f"{name}-pretrain-lvd1689m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert main(arguments) == 2 and "cannot be used" in capsys.readouterr().out
