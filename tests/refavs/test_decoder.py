"""The mask decoder against Mask2Former's, and that its optimisations do not change results."""

import re

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from refavs.data.clip_groups import ClipGroups
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.decoder import EEMCOutput, MaskDecoder, _smaller, predict

CHANNELS, HEADS, LAYERS, HIDDEN, QUERIES = 32, 4, 4, 48, 5
CLIP = [1, 0, 1]
GROUPS = ClipGroups.of(CLIP, 2)


def make_decoder(num_layers: int = LAYERS, **sizes: int) -> MaskDecoder:
    torch.manual_seed(0)
    channels = {"mask_channels": 12, "level_channels": 20, **sizes}
    return MaskDecoder(
        CHANNELS, HEADS, num_layers, HIDDEN, 0.0, num_queries=QUERIES, mask_channels=channels["mask_channels"],
        level_channels=(channels["level_channels"],) * 3,
    ).eval()  # fmt: skip


def inputs(mask_channels: int = 12, level_channels: int = 20) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Queries of three expressions in two frames, and the maps of two clips."""
    torch.manual_seed(1)
    levels = [torch.randn(2, 2, level_channels, side, side) for side in (2, 4, 8)]
    return torch.randn(3, 2, QUERIES, CHANNELS), torch.randn(2, 2, mask_channels, 16, 16), levels


def mask2former(decoder: MaskDecoder) -> nn.Module:
    """transformers' module with the weights of `decoder`, and widths as it wants them."""
    ensure_torchvision()
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    config = Mask2FormerConfig(
        hidden_dim=CHANNELS, mask_feature_size=12, feature_size=20, num_attention_heads=HEADS, dim_feedforward=HIDDEN,
        decoder_layers=LAYERS + 1, num_queries=QUERIES, dropout=0.0,
    )
    module = Mask2FormerTransformerModule(in_features=20, config=config).eval()
    own = decoder.state_dict()
    own["level_embeddings"] = torch.stack([own.pop(f"level_embeddings.{level}") for level in range(3)])
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            parts = own[f"layers.{layer}.self_attention.project.{kind}"].chunk(3)
            for part, values in zip("qkv", parts, strict=True):
                own[f"layers.{layer}.self_attention.{part}_proj.{kind}"] = values
    for kind in ("weight", "bias"):
        own[f"mask_head.4.{kind}"] = own[f"mask_head.4.{kind}"][:-1]  # the bias of each query is ours
    state = {
        name: tensor if name.startswith("queries_features") else own[own_name(name)].reshape(tensor.shape)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module


def own_name(name: str) -> str:
    """Our name of a parameter of transformers' module."""
    for theirs, ours in {
        "queries_embedder.weight": "query_positions", "level_embed.weight": "level_embeddings",
        "input_projections": "level_projections", "decoder.layernorm": "norm", "decoder.layers": "layers",
        "self_attn_layer_norm": "self_norm", "cross_attn_layer_norm": "cross_norm",
        "final_layer_norm": "feedforward_norm", "out_proj": "out", "in_proj_": "project.",
        "self_attn.": "self_attention.", "cross_attn.": "cross_attention.", "fc1": "feedforward.0",
        "fc2": "feedforward.3",
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    head = re.fullmatch(r"decoder.mask_predictor.mask_embedder.(\d).0.(\w+)", name)
    return f"mask_head.{2 * int(head[1])}.{head[2]}" if head else name


def test_decoder_equals_mask2formers() -> None:
    decoder = make_decoder().double()
    for weight in decoder.parameters():
        nn.init.normal_(weight, std=0.3)
    for weight in decoder.mask_head[-1].parameters():
        nn.init.zeros_(weight[-1])
    reference = mask2former(decoder).double()
    queries, masks, levels = inputs()
    queries, masks, levels = queries.double(), masks.double(), [level.double() for level in levels]
    decoder.train()
    output = decoder(queries, masks, levels, GROUPS)
    ours = [part.mask_logits for part in (*output.auxiliary, output)]

    frames = [rearrange(level[CLIP], "b t c h w -> (b t) c h w") for level in levels]
    theirs = _reference_masks(reference, rearrange(queries, "b t q c -> q (b t) c"),
                              rearrange(masks[CLIP], "b t c h w -> (b t) c h w"), frames)
    assert len(ours) == len(theirs) == LAYERS + 1
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(rearrange(own, "b t q h w -> (b t) q h w"), their, rtol=1e-5, atol=1e-6)


def _reference_masks(module: nn.Module, queries: Tensor, masks: Tensor, levels: list[Tensor]) -> list[Tensor]:
    """What transformers' module does in its forward, with other query features than its own."""
    flat, positions = [], []
    for index, level in enumerate(levels):
        place = module.position_embedder(level.shape, level.device, level.dtype)
        positions.append(rearrange(place, "s c h w -> (h w) s c"))
        embedded = module.input_projections[index](level) + module.level_embed.weight[index][None, :, None, None]
        flat.append(rearrange(embedded, "s c h w -> (h w) s c"))
    placed = module.queries_embedder.weight[:, None].expand(-1, queries.shape[1], -1)
    output = module.decoder(
        inputs_embeds=queries, multi_stage_positional_embeddings=positions, pixel_embeddings=masks,
        encoder_hidden_states=flat, query_position_embeddings=placed,
        feature_size_list=[level.shape[-2:] for level in levels], return_dict=True,
    )
    return list(output.masks_queries_logits)


@pytest.mark.parametrize("clips", [CLIP, [0, 0, 0], [0, 1, 1], [0, 0, 1]])
def test_decoder_treats_expressions_independently(clips: list[int]) -> None:
    decoder, (queries, masks, levels) = make_decoder(), inputs()
    num_clips = max(clips) + 1
    masks, levels = masks[:num_clips], [level[:num_clips] for level in levels]
    together = decoder(queries, masks, levels, ClipGroups.of(clips, num_clips))
    for row, clip in enumerate(clips):
        alone = decoder(queries[row][None], masks[clip][None], [level[clip][None] for level in levels],
                        ClipGroups.of([0], 1))
        torch.testing.assert_close(together.mask_logits[row], alone.mask_logits[0])
        torch.testing.assert_close(together.class_logits[row], alone.class_logits[0])


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (16, 24), (5, 24)])
def test_smaller_maps_are_interpolated_ones(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 16, 24)
    expected = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(_smaller(maps, *size), expected)


def test_decoder_without_layers_reads_no_level() -> None:
    decoder, (queries, masks, _) = make_decoder(0), inputs()
    output = decoder(queries, masks, [], GROUPS)
    assert output.mask_logits.shape == (3, 2, QUERIES, 16, 16)
    assert not [name for name, _ in decoder.named_parameters() if "level" in name or "position" in name]


def test_decoder_predicts_the_same_in_training_and_evaluation() -> None:
    decoder, arguments = make_decoder(), (*inputs(), GROUPS)
    evaluated, trained = decoder(*arguments), decoder.train()(*arguments)
    assert torch.equal(evaluated.mask_logits, trained.mask_logits)
    assert not evaluated.auxiliary and len(trained.auxiliary) == LAYERS


def test_mask_bias_moves_all_pixels_of_a_query() -> None:
    decoder, arguments = make_decoder(0), (*inputs(), GROUPS)
    before = decoder(*arguments).mask_logits
    with torch.no_grad():
        decoder.mask_head[-1].bias[-1] += 2
    torch.testing.assert_close(decoder(*arguments).mask_logits, before + 2)


def flat_masks(biases: Tensor, classes: Tensor) -> EEMCOutput:
    """One frame of 2 x 2 pixels, in which the mask of each query is its bias."""
    embeddings = torch.stack([torch.ones(3), biases], dim=1)[None, None]
    return EEMCOutput(embeddings, torch.zeros(1, 1, 1, 2, 2), ClipGroups.of([0], 1), classes)


def test_predict_sums_the_masks_by_their_class() -> None:
    biases = torch.tensor([4.0, -4.0, 1.0])
    classes = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-3.0, 0.0]])[None, None]
    expected = sum(torch.sigmoid(torch.tensor(c)) * torch.sigmoid(torch.tensor(m))
                   for c, m in ((2.0, 4.0), (0.0, -4.0), (-3.0, 1.0)))
    probs = predict(flat_masks(biases, classes), (4, 4))
    torch.testing.assert_close(probs, torch.full((1, 1, 4, 4), float(expected)))


def test_predict_never_exceeds_one() -> None:
    classes = torch.tensor([9.0, 0.0]).expand(1, 1, 3, 2)
    assert float(predict(flat_masks(torch.full((3,), 9.0), classes)).max()) == 1.0


@pytest.mark.parametrize("channels", [12, CHANNELS])
def test_decoder_projects_levels_of_another_width_only(channels: int) -> None:
    decoder = make_decoder(level_channels=channels)
    assert any("level_projections" in name for name, _ in decoder.named_parameters()) == (channels != CHANNELS)
