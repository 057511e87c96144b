"""GAVS: SAM's decoder and its weights, the noise, the loss, and the part of SAM's square that is picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.feature_sizes import FeatureSizes, MapSize
from refavs.model.heads.contract import check_head, made_up_batch
from refavs.model.heads.gavs import GAVS, GAVSOutput, Noise, pictured
from refavs.model.heads.parts.baseline_options import GAVSOptions
from refavs.model.heads.parts.sam_decoder import NarrowAttention, SamDecoder
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, loss_of, small_head, small_sizes

SMALL = GAVSOptions(channels=16, num_heads=2, feedforward_channels=24)
FROZEN = replace(SMALL, decoder_weights="sam-vit-base")
ENCODERS = {"visual/sam": {"name": "sam-vit-base"}}


def sam_sizes(options: GAVSOptions, channels: int = 16, extent: bool = False) -> FeatureSizes:
    """Features of a store with the map of SAM's encoder."""
    sizes = (("map", channels, 8), *((("extent", 1, 1),) if extent else ()))
    maps = tuple(MapSize(name=name, path=f"clips/visual/sam/{name}", channels=wide, height=side, width=side)
                 for name, wide, side in sizes)  # fmt: skip
    return replace(small_sizes(options), maps=maps)


def theirs() -> Any:
    """The decoder of transformers with other numbers than those of a new one."""
    ensure_torchvision()
    from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    torch.manual_seed(0)
    decoder = SamMaskDecoder(SamMaskDecoderConfig(
        hidden_size=16, num_attention_heads=2, mlp_dim=24, iou_head_hidden_dim=16, num_hidden_layers=2
    )).eval()  # fmt: skip
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return decoder


def saved(folder: Path, decoder: nn.Module, **other: torch.Tensor) -> Path:
    """A checkpoint of SAM as the hub has it."""
    folder.mkdir()
    state = {f"mask_decoder.{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    state |= {"prompt_encoder.no_mask_embed.weight": torch.randn(1, 16), "vision_encoder.unread": torch.zeros(1),
              "shared_image_embedding.positional_embedding": torch.randn(2, 8)}  # fmt: skip
    save_file(state | other, folder / "model.safetensors")
    return folder


@pytest.mark.long
def test_decoder_with_the_weights_of_sam_is_that_of_sam(tmp_path: Path) -> None:
    decoder, own = theirs(), SamDecoder(16, 2, 2, 24).eval()
    own.load(saved(tmp_path / "sam-vit-base", decoder))
    image, prompt = torch.randn(3, 16, 6, 5), torch.randn(3, 1, 16)
    positions = own.positions(6, 5).T.reshape(1, 16, 6, 5).expand(3, -1, -1, -1)
    with torch.no_grad():
        found = own(image, prompt)
        dense = own.no_mask.reshape(1, 16, 1, 1).expand(3, 16, 6, 5)
        wanted, _ = decoder(image, positions, prompt[:, None], dense, multimask_output=False)
    torch.testing.assert_close(found, wanted[:, 0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("few", [1, 7])
def test_tokens_and_pixels_read_each_other_as_plain_attention_does(few: int) -> None:
    torch.manual_seed(0)
    attention = NarrowAttention(16, 8, 4).double()
    tokens, pixels, placed = (torch.randn(2, size, 16).double().requires_grad_() for size in (few, 30, 30))
    used = [tokens, pixels, placed, *attention.parameters()]
    for short, plain in (
        (attention.pixels_read(tokens, placed, pixels), attention(tokens, placed, pixels)),
        (attention.tokens_read(placed, tokens, tokens + 1), attention(placed, tokens, tokens + 1)),
    ):
        torch.testing.assert_close(short, plain)
        found, wanted = (torch.autograd.grad(one.square().sum(), used, allow_unused=True) for one in (short, plain))
        torch.testing.assert_close(found, wanted)


def test_positions_are_fourier_features_of_the_centres() -> None:
    decoder = SamDecoder(16, 2, 1, 8)
    place = torch.tensor([2 * 1.5 / 4 - 1, 2 * 2.5 / 3 - 1])  # row 2 of 3, column 1 of 4
    angle = 2 * torch.pi * place @ decoder.fourier
    torch.testing.assert_close(decoder.positions(3, 4)[2 * 4 + 1], torch.cat([angle.sin(), angle.cos()]))


@pytest.mark.long
@pytest.mark.parametrize("options", [SMALL, FROZEN])
def test_head_on_the_map_of_sam_keeps_the_contract(options: GAVSOptions) -> None:
    check_head(options, sam_sizes(options))


def test_pretrained_decoder_stays_as_it_is() -> None:
    torch.manual_seed(0)
    head = GAVS(FROZEN, sizes := sam_sizes(FROZEN))
    trained = {name.split(".")[0] for name, one in head.named_parameters() if one.requires_grad}
    assert trained == {"cue", "adapters"} and head.as_stored
    nn.init.normal_(head.adapters[1][-1].weight)  # type: ignore[index]
    loss_of(head, made_up_batch(sizes, 2)).backward()
    assert all(one.grad is None for one in head.decoder.parameters())
    assert all(one.grad is not None and bool(one.grad.any()) for one in head.adapters[1].parameters())


def test_published_sizes_on_sam() -> None:
    options = replace(GAVSOptions(), decoder_weights="sam-vit-base", text=False)
    maps = (MapSize(name="map", path="clips/visual/sam/map", channels=256, height=64, width=64),)
    audio = small_sizes(options).audio
    assert audio is not None
    with torch.device("meta"):
        head = GAVS(options, FeatureSizes(audio=replace(audio, channels=128), text=None, maps=maps))
    (prompt, adapters, decoder) = head.part_sizes()
    assert (prompt.trained + adapters.trained) / 1e6 == pytest.approx(0.329, rel=0.01)
    assert decoder.frozen / 1e6 == pytest.approx(4.058, rel=0.01) and decoder.trained == 0


def test_start_is_sam_without_adapters() -> None:
    head, batch = small_head(SMALL)
    image = head._image(head.maps(batch))[batch.clip].flatten(0, 1)
    cue = head.eval().cue(batch)
    prompt = nn.functional.layer_norm(cue, cue.shape[-1:]).flatten(0, 1)[:, None]
    torch.testing.assert_close(head(batch).logits.flatten(0, 1), head.decoder(image, prompt))


@pytest.mark.parametrize("kind", ["add", "replace", "none"])
def test_noise_of_training(kind: str) -> None:
    noise, sound = Noise(kind), 3 + 2 * torch.randn(1, 2, 4000)
    assert torch.equal(noise.eval()(sound), sound)
    found = noise.train()(sound)
    added = found - sound if kind == "add" else found
    if kind == "none":
        assert torch.equal(found, sound)
        return
    assert float(added.std()) == pytest.approx(2.0, rel=0.1) and float(added.mean()) == pytest.approx(0.0, abs=0.2)
    correlation = float(torch.corrcoef(torch.stack([found.flatten(), sound.flatten()]))[0, 1])
    assert correlation == pytest.approx(0.7 if kind == "add" else 0.0, abs=0.1)


def test_choices_of_the_published_form() -> None:
    assert SMALL.choice("noise") == "add" and replace(SMALL, faithful=True).choice("noise") == "replace"
    assert replace(SMALL, faithful=True, noise="none").choice("noise") == "none"


@pytest.mark.parametrize("mask_loss", ["bce", "avs", "bce_dice"])
def test_loss_equals_its_formulas(mask_loss: Any) -> None:
    head, batch = small_head(replace(SMALL, mask_loss=mask_loss))
    logits = torch.randn(3, 2, 64, 64)
    assert batch.mask is not None
    found = head.loss(GAVSOutput(logits, None), Target(masks=batch.mask), PIXELS)["total"]
    probs, labels = logits.sigmoid(), batch.mask.float()
    wanted = nn.functional.binary_cross_entropy(probs, labels)
    if mask_loss == "avs":
        right, balance = torch.where(batch.mask, probs, 1 - probs), torch.where(batch.mask, 0.25, 0.75)
        wanted = 20 * (-balance * (1 - right) ** 2 * right.log()).mean()
    if mask_loss != "bce":
        overlap, both = (probs * labels).sum(dim=(2, 3)), (probs + labels).sum(dim=(2, 3))
        wanted = wanted + (1 - (2 * overlap + 1) / (both + 1)).mean()
    torch.testing.assert_close(found, wanted)


def test_masks_are_those_of_the_picture_in_the_square() -> None:
    square = torch.zeros(1, 1, 32, 32)
    square[..., :16, :32] = torch.arange(32.0)  # the picture fills the upper half
    found = pictured(GAVSOutput(square, torch.tensor([[[0.5, 1.0]]])), (16, 32))
    torch.testing.assert_close(found[0, 0], torch.arange(32.0).expand(16, 32), atol=1e-4, rtol=0)


def test_head_reads_which_part_is_picture() -> None:
    torch.manual_seed(0)
    sizes = sam_sizes(SMALL, extent=True)
    head = GAVS(SMALL, sizes).eval()
    batch = made_up_batch(sizes, 2)
    batch.visual["extent"] = torch.tensor([8.0, 4.0]).expand(2, 2, 2)
    narrow = head(batch)
    assert narrow.picture is not None and torch.equal(narrow.picture, torch.tensor([1.0, 0.5]).expand(3, 2, 2))
    batch.visual["extent"] = torch.tensor([8.0, 8.0]).expand(2, 2, 2)
    torch.testing.assert_close(head.probs(narrow, (32, 16)), head.probs(head(batch), (32, 32))[..., :16], atol=1e-5,
                               rtol=1e-4)  # fmt: skip


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    head = GAVS(FROZEN, sam_sizes(FROZEN))
    with pytest.raises(WeightsError, match=r"sam-vit-base has no model.safetensors; download .* facebook/sam-vit-base"):
        head.load_pretrained(tmp_path / "sam-vit-base", ENCODERS)
    save_file({"mask_decoder.iou_token.weight": torch.zeros(1, 8)}, (tmp_path / "model.safetensors"))
    (tmp_path / "sam-vit-base").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "sam-vit-base/model.safetensors")
    with pytest.raises(WeightsError, match=r"mask decoder of .* lacks .*; take facebook/sam-vit-base"):
        head.load_pretrained(tmp_path / "sam-vit-base", ENCODERS)
    with pytest.raises(StoreError, match=r"maps are of swin, the decoder is that of sam-vit-base; extract"):
        head.load_pretrained(tmp_path / "sam-vit-base", {"visual/sam": {"name": "swin"}})
    with pytest.raises(ConfigError, match=r"sam-vit-base reads maps of 16 channels, the store's has 24"):
        GAVS(FROZEN, sam_sizes(FROZEN, channels=24))
