"""SimToken's decoder half: SAM 2's decoder and its weights, the fusion, the loss, and what a cue changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from refavs.errors import ConfigError, SettingError, StoreError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes, MapSize
from refavs.model.heads.contract import check_head
from refavs.model.heads.parts.sam_decoder import Sam2Decoder, in_blocks
from refavs.model.heads.parts.simtoken_options import SimTokenOptions
from refavs.model.heads.simtoken import SimToken, SimTokenOutput
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, loss_of, overfit, small_head, small_sizes, with_other

SMALL = SimTokenOptions(channels=16, num_heads=2, fusion_layers=2, feedforward_channels=16, tokens_per_side=2,
                        decoder_feedforward_channels=24)  # fmt: skip
PRETRAINED = replace(SMALL, decoder_weights="sam2.1-hiera-tiny")
ENCODERS = {"visual/sam2/image": {"name": "sam2.1-hiera-tiny"}}
SIDES = {"s4": (2, 16), "s8": (4, 8), "map": (16, 4)}


def sam_sizes(options: SimTokenOptions, channels: int = 16) -> FeatureSizes:
    """Features of a store of SAM 2.1, whose finer maps have an eighth and a quarter of the channels."""
    levels = {"s4": "high_resolution", "s8": "high_resolution", "map": "image"}
    maps = tuple(MapSize(name=name, path=f"clips/visual/sam2/{levels[name]}/{name}", channels=wide * channels // 16,
                         height=side, width=side) for name, (wide, side) in SIDES.items())  # fmt: skip
    return replace(small_sizes(options), maps=maps)


def theirs() -> Any:
    """The decoder of transformers with other numbers than those of a new one."""
    ensure_torchvision()
    from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig
    from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

    torch.manual_seed(0)
    decoder = Sam2MaskDecoder(Sam2MaskDecoderConfig(
        hidden_size=16, num_attention_heads=2, mlp_dim=24, iou_head_hidden_dim=16, num_hidden_layers=2,
        dynamic_multimask_via_stability=False,
    )).eval()  # fmt: skip
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return decoder


def saved(folder: Path, decoder: nn.Module, no_memory: torch.Tensor) -> Path:
    """A checkpoint of SAM 2.1 as the hub has it."""
    folder.mkdir()
    state = {f"mask_decoder.{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    state |= {"prompt_encoder.no_mask_embed.weight": torch.randn(1, 16), "no_memory_embedding": no_memory,
              "shared_image_embedding.positional_embedding": torch.randn(2, 8),
              "vision_encoder.unread": torch.zeros(1)}  # fmt: skip
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.long
def test_decoder_with_the_weights_of_sam2_is_that_of_sam2(tmp_path: Path) -> None:
    decoder, own, no_memory = theirs(), Sam2Decoder(16, 2, 2, 24).eval(), torch.randn(1, 1, 16)
    own.load(saved(tmp_path / "sam2.1-hiera-tiny", decoder, no_memory))
    image, prompt = torch.randn(3, 16, 6, 5), torch.randn(3, 1, 16)
    finer = [torch.randn(3, 4, 12, 10), torch.randn(3, 2, 24, 20)]
    positions = own.positions(6, 5).T.reshape(1, 16, 6, 5).expand(3, -1, -1, -1)
    with torch.no_grad():
        masks, scores = own.segment(image, [in_blocks(finer[0], 2), in_blocks(finer[1], 4)], prompt)
        dense = (own.no_mask - no_memory[0, 0]).reshape(1, 16, 1, 1).expand(3, 16, 6, 5)
        wanted, _, _, shown = decoder(
            image + no_memory.reshape(1, 16, 1, 1), positions, prompt[:, None], dense, multimask_output=False,
            high_resolution_features=finer[::-1],
        )  # fmt: skip
    torch.testing.assert_close(masks, wanted[:, 0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, shown[:, 0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("options", "sam"), [
    (SMALL, False), (replace(SMALL, prompt="second", faithful=True), False), (PRETRAINED, True),
])  # fmt: skip
def test_head_keeps_the_contract(options: SimTokenOptions, sam: bool) -> None:
    check_head(options, sam_sizes(options) if sam else small_sizes(options))


def test_decoder_has_the_size_of_that_of_sam2() -> None:
    options = SimTokenOptions(decoder_weights="sam2.1-hiera-tiny")
    maps = tuple(replace(size, channels=wide * 16) for size, (wide, _) in zip(sam_sizes(options).maps, SIDES.values(),
                                                                              strict=True))  # fmt: skip
    with torch.device("meta"):
        head = SimToken(options, replace(sam_sizes(options), maps=maps))
    (_, decoder) = head.part_sizes()
    applied = 256 * (32 + 64) + 32 + 64  # the convolutions of the finer maps, which the encoder applies
    no_mask = 256  # SAM 2 has it in its prompt encoder
    assert (decoder.trained + decoder.frozen - no_mask + applied) / 1e6 == pytest.approx(4.215, rel=0.001)


@pytest.mark.parametrize("settings", [{}, {"faithful": True}, {"prompt": "second"}])
def test_gradient_reaches_each_trained_parameter_and_no_other(settings: dict[str, Any]) -> None:
    head, batch = small_head(replace(SMALL, **settings))
    loss_of(head.train(), batch).backward()
    reached = {name for name, one in head.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert reached == {name for name, one in head.named_parameters() if one.requires_grad}
    scored = any("pred_obj_score_head" in name for name in reached)
    assert scored != bool(settings.get("faithful"))


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_removed_cue_has_no_influence(modality: str) -> None:
    options = replace(SMALL, object_score=0.0)
    head, batch = small_head(replace(options, **{modality: False}))
    whole, _ = small_head(options)
    changed = with_other(batch, modality)
    before, after = (head.eval().probs(head(one)) for one in (batch, changed))
    assert torch.equal(before, after)
    before, after = (whole.eval().probs(whole(one)) for one in (batch, changed))
    assert not torch.equal(before, after)


def test_padding_of_an_expression_has_no_influence() -> None:
    head, batch = small_head(replace(SMALL, object_score=0.0))
    text = torch.where(batch.valid[..., None], batch.text, 1e3)
    before, after = (head.eval().probs(head(one)) for one in (batch, replace(batch, text=text)))
    assert torch.equal(before, after)


@pytest.mark.long
def test_head_overfits_one_batch() -> None:
    assert overfit(*small_head(SMALL), learning_rate=0.01) > 0.95


@pytest.mark.long
def test_heads_that_share_a_batch_predict_as_alone() -> None:
    head, batch = small_head(SMALL)
    other, _ = small_head(replace(SMALL, text=False))
    once = Once(keep=True)
    for one in (head.eval(), other.eval()):
        assert torch.equal(one.probs(one(batch, once=once)), one.probs(one(batch)))


def test_head_computes_in_bfloat16() -> None:
    head, batch = small_head(SMALL)
    exact = loss_of(head, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_of(head, batch)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_prompt_of_a_clip_is_the_same_in_all_steps() -> None:
    head, batch = small_head(SMALL, num_steps=3)
    by_step, _ = small_head(replace(SMALL, prompt="second"), num_steps=3)
    assert head.fusion(batch).shape == (3, 1, 16)
    prompts = by_step.fusion(batch)
    assert prompts.shape == (3, 3, 16) and not torch.allclose(prompts[:, 0], prompts[:, 1])


def test_loss_equals_its_formulas() -> None:
    head, batch = small_head(SMALL)
    logits, scores = torch.randn(3, 2, 64, 64), torch.randn(3, 2)
    assert batch.mask is not None
    labelled = torch.tensor([[True, True], [True, False], [True, True]])
    found = head.loss(SimTokenOutput(logits, scores), Target(masks=batch.mask, labelled=labelled), PIXELS)
    probs, labels = logits.sigmoid(), batch.mask.float()
    bce = nn.functional.binary_cross_entropy(probs, labels, reduction="none").mean(dim=(2, 3))
    dice = 1 - (2 * (probs * labels).sum(dim=(2, 3)) + 1) / ((probs + labels).sum(dim=(2, 3)) + 1)
    shown = batch.mask.flatten(2).any(dim=2)
    score = -torch.where(shown, scores.sigmoid(), 1 - scores.sigmoid()).log()
    wanted = ((2 * bce + 0.5 * dice + score) * labelled).sum() / 5
    torch.testing.assert_close(found["total"], wanted)


def test_masks_are_empty_where_the_object_is_not_shown() -> None:
    head, _ = small_head(SMALL)
    logits = torch.ones(1, 2, 4, 4)
    found = head.probs(SimTokenOutput(logits, torch.tensor([[1.0, -1.0]])))
    assert torch.equal(found.flatten(2).amax(dim=2) > 0, torch.tensor([[True, False]]))
    assert torch.equal(head.probs(SimTokenOutput(logits, None)), logits.sigmoid())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    head = SimToken(PRETRAINED, sam_sizes(PRETRAINED))
    with pytest.raises(WeightsError, match=r"has no model.safetensors; download .* facebook/sam2.1-hiera-tiny"):
        head.load_pretrained(tmp_path / "sam2.1-hiera-tiny", ENCODERS)
    with pytest.raises(StoreError, match=r"maps are of swin, the decoder is that of sam2.1-hiera-tiny; extract"):
        head.load_pretrained(tmp_path / "sam2.1-hiera-tiny", {"visual/sam2/image": {"name": "swin"}})
    with pytest.raises(ConfigError, match=r"sam2.1-hiera-tiny reads maps of 16 channels, the store's has 32"):
        SimToken(PRETRAINED, sam_sizes(PRETRAINED, channels=32))


@pytest.mark.parametrize(("settings", "told"), [
    ({"audio": False, "text": False}, "audio and text are both false"),
    ({"channels": 12}, "channels is 12; accepted: a multiple of 8"),
    ({"tokens_per_side": 0}, "tokens_per_side is 0; accepted: a whole number from 1 up"),
    ({"dice": -1.0}, "dice is -1.0; accepted: a number from 0 up"),
])  # fmt: skip
def test_bad_setting_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        replace(SMALL, **settings)
