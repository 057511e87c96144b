"""The release's arithmetic against a network written out from what it does, its checkpoint's layout, and bad ones."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.checkpoint import load_model, save_model
from refavs.model.decoder import predict
from refavs.model.feature_sizes import STAGES, FeatureSizes, MapSize, StreamSize
from refavs.model.heads.options import ReleasedOptions
from refavs.model.heads.protocol import ChosenSteps
from refavs.model.heads.released import ReleasedHead, load_released, released_stamp

pytestmark = pytest.mark.long  # for what its fixtures make

WIDE, WIDTH, QUERIES, LAYERS, FEEDFORWARD = 64, 32, 5, 4, 24
NUM_FRAMES, LENGTH, HEIGHT, PLACES = 3, 6, 16, (2, 3)  # maps that are not square, so that no axis passes for another
AUDIO, TEXT = 7, 9
SIZES = FeatureSizes(
    audio=StreamSize(path="clips/audio/vggish/features", channels=AUDIO),
    text=StreamSize(path="text/roberta/features", channels=TEXT),
    maps=tuple(
        MapSize(name=name, path=f"clips/visual/backbone/{name}", channels=WIDE >> (3 - index),
                height=PLACES[0] << (3 - index), width=PLACES[1] << (3 - index))
        for index, name in enumerate(STAGES)
    ),
)  # fmt: skip
OPTIONS = {"channels": WIDTH, "num_queries": QUERIES, "decoder_layers": LAYERS,
           "decoder_feedforward_channels": FEEDFORWARD}  # fmt: skip
ENCODERS = {"text/roberta": {"name": "roberta", "padding": "kept"}}


def mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.ReLU(), nn.Linear(hidden, outside))


class Prompting(nn.Module):
    """Four heads, the queries first in the order (queries, batch, channels)."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query_embedding", "key_embedding", "value_embedding", "out_projection"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.beta_source_pool, self.beta_source_attn = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        num_queries, batch, _ = target.shape
        heads, each = 4, WIDTH // 4
        found = torch.zeros(batch, num_queries, WIDTH)
        query = self.query_embedding(target.permute(1, 0, 2))
        key, value = self.key_embedding(source), self.value_embedding(source)
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            scores = query[..., own] @ key[..., own].transpose(1, 2) / each**0.5
            found[..., own] = scores.softmax(-1) @ value[..., own]
        gated = torch.sigmoid(self.beta_source_attn) * self.out_projection(found)
        pooled = torch.sigmoid(self.beta_source_pool) * source.mean(1).view(1, batch, WIDTH)
        return target + gated.permute(1, 0, 2) + pooled


class Twin(nn.Module):
    """The whole of it under the release's names, with transformers' Mask2Former; a layer stands for its Swin."""

    def __init__(self) -> None:
        super().__init__()
        ensure_torchvision()
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former import modeling_mask2former as theirs

        class Adapted(theirs.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
            def __init__(self) -> None:
                super().__init__(WIDTH, 8, 3, 4)
                self.avs_adapt = mlp(WIDTH, WIDTH // 4, WIDTH)

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output, weights = super().forward(*args, **kwargs)
                return self.avs_adapt(output), weights

        config = Mask2FormerConfig(
            feature_size=WIDTH, mask_feature_size=WIDTH, hidden_dim=WIDTH, num_attention_heads=8, num_queries=QUERIES,
            encoder_feedforward_dim=1024, encoder_layers=6, dim_feedforward=FEEDFORWARD, decoder_layers=LAYERS + 1,
            dropout=0.0,
        )
        self.model_v = nn.Module()
        self.model_v.model = model = nn.Module()
        model.pixel_level_module = nn.Module()
        model.pixel_level_module.encoder = nn.Linear(2, 2)
        widths = [size.channels for size in SIZES.maps]
        model.pixel_level_module.decoder = theirs.Mask2FormerPixelDecoder(config, widths)
        for layer in model.pixel_level_module.decoder.encoder.layers:
            layer.self_attn = Adapted()
        model.transformer_module = theirs.Mask2FormerTransformerModule(in_features=WIDTH, config=config)
        model.transformer_module.ref_avs_attn = Prompting()
        self.model_v.class_predictor = nn.Linear(WIDTH, 151)
        self.model_v.criterion = nn.Module()
        self.model_v.criterion.register_buffer("empty_weight", torch.ones(151))
        self.audio_proj, self.text_proj = mlp(AUDIO, 2 * WIDE, WIDE), mlp(TEXT, 2 * WIDE, WIDE)
        self.prompt_proj = mlp(WIDE, 2 * WIDE, WIDTH)
        self.mha_A_T, self.mha_V_T, self.mha_mm = (nn.MultiheadAttention(WIDE, 8) for _ in range(3))

    def forward(self, pyramid: list[Tensor], audio: Tensor, text: Tensor) -> Tensor:
        """Logits at four times the finest map, for maps of (batch x frames), sound and text."""
        batch, frames, places = len(audio), NUM_FRAMES, PLACES[0] * PLACES[1]
        audio, text = self.audio_proj(audio), self.text_proj(text)
        visual = pyramid[-1].contiguous().view(batch, WIDE, places, frames).view(batch, -1, WIDE)
        parts, texts = [], [text]
        for attention, tokens in ((self.mha_A_T, audio), (self.mha_V_T, visual)):
            joined = torch.cat((tokens, text), dim=1).permute(1, 0, 2)
            joined, _ = attention(joined, joined, joined)
            own = joined[: tokens.shape[1]]
            memory = torch.stack([own[: index + 1].mean(0) for index in range(len(own))])
            parts.append((2 * own - memory).permute(1, 0, 2))
            texts.append(joined[tokens.shape[1] :].permute(1, 0, 2))
        sound, seen = parts[0], parts[1].contiguous().view(batch, frames, places, WIDE)
        mean = (texts[0] + texts[1] + texts[2]) / 3
        tag_a, tag_v = torch.full([batch, 1, WIDE], 0), torch.full([batch, 1, WIDE], 1)
        prompts = []
        for frame in range(frames):
            cues = torch.cat([sound, tag_a, seen[:, frame], tag_v, mean], dim=1)
            prompts.append(self.mha_mm(cues, cues, cues)[0])
        prompt = torch.stack(prompts).permute(1, 0, 2, 3).contiguous().view(batch * frames, -1, WIDE)
        return self.decode(pyramid, self.prompt_proj(prompt))

    def decode(self, pyramid: list[Tensor], prompt: Tensor) -> Tensor:
        model, module = self.model_v.model, self.model_v.model.transformer_module
        pixels = model.pixel_level_module.decoder(pyramid)
        positions, features, sizes = [], [], []
        for index, maps in enumerate(pixels.multi_scale_features):
            sizes.append(maps.shape[-2:])
            position = module.position_embedder(maps.shape, maps.device, maps.dtype, None)
            positions.append(position.flatten(2).permute(2, 0, 1))
            level = module.input_projections[index](maps).flatten(2) + module.level_embed.weight[index][None, :, None]
            features.append(level.permute(2, 0, 1))
        queries = module.queries_features.weight.unsqueeze(1).repeat(1, len(prompt), 1)
        output = module.decoder(
            inputs_embeds=module.ref_avs_attn(queries, prompt), multi_stage_positional_embeddings=positions,
            pixel_embeddings=pixels.mask_features, encoder_hidden_states=features, feature_size_list=sizes,
            query_position_embeddings=module.queries_embedder.weight.unsqueeze(1).repeat(1, len(prompt), 1),
            return_dict=True,
        )  # fmt: skip
        classes = self.model_v.class_predictor(output.intermediate_hidden_states[-1].transpose(0, 1))
        first = torch.stack([classes[..., 0], classes[..., -1]], dim=-1).softmax(-1)[..., 0]
        size = tuple(4 * side for side in pixels.mask_features.shape[-2:])
        masks = nn.functional.interpolate(output.masks_queries_logits[-1], size=size, mode="bilinear")
        return torch.einsum("bq,bqhw->bhw", first, masks)


@pytest.fixture(scope="module")
def twin() -> Twin:
    """Weights so large that every value has order 1, where small ones hide a wrong wiring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about the speed of a CUDA kernel
        twin = Twin().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            wide = weight.ndim > 1 and not name.endswith(("level_embed", "queries_features.weight"))
            spread = weight[0].numel() ** -0.5 if wide else 1.0 if weight.ndim > 1 else 0.3
            centre = float("norm" in name and name.endswith("weight"))
            weight.copy_(centre + spread * torch.randn(weight.shape, generator=generator))
    return twin


@pytest.fixture(scope="module")
def file(twin: Twin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "ckpt_best_miou.pth"
    torch.save(twin.state_dict(), path)
    return path


def make_head(**options: Any) -> ReleasedHead:
    return ReleasedHead(ReleasedOptions(**{**OPTIONS, **options}), SIZES).eval()


@pytest.fixture(scope="module")
def head(file: Path) -> ReleasedHead:
    head = make_head()
    load_released(file, head, ENCODERS)
    return head


def make_batch(clip: list[int], seed: int = 0) -> Batch:
    """Expressions of the clips; features that a half holds exactly, as stored."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).half()

    number, clips = len(clip), max(clip) + 1
    return Batch(
        visual={size.name: noise(clips, NUM_FRAMES, size.channels, size.height, size.width) for size in SIZES.maps},
        audio=noise(clips, NUM_FRAMES, AUDIO).float(), text=noise(number, LENGTH, TEXT),
        valid=torch.arange(LENGTH).expand(number, -1) < 3, clip=torch.tensor(clip), mask=None,
        uid=[str(index) for index in range(number)], split=["val"] * number, dimension=[""] * number,
        text_string=["a"] * number,
    )  # fmt: skip


@torch.no_grad()
def logits_of(twin: Twin, batch: Batch) -> Tensor:
    pyramid = [batch.visual[size.name].float()[batch.clip].flatten(0, 1) for size in SIZES.maps]
    logits = twin(pyramid, batch.audio[batch.clip], batch.text.float())
    return logits.view(len(batch), NUM_FRAMES, *logits.shape[-2:])


@pytest.mark.parametrize("clip", [[0], [0, 1, 1, 0]], ids=["alone", "four"])
def test_head_is_what_the_release_computes(twin: Twin, head: ReleasedHead, clip: list[int]) -> None:
    batch = make_batch(clip)
    expected = logits_of(twin, batch)
    assert 0.1 < expected.std() < 10 and (expected > 0).any() and (expected < 0).any()
    with torch.no_grad():
        output = head(batch)
    found = output.mask_logits[:, :, 0]
    assert output.mask_logits.shape[2] == 1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    probs = predict(output, tuple(expected.shape[-2:]))
    assert (probs - expected.sigmoid()).abs().max() <= 1e-5


def test_names_are_those_of_transformers_and_the_additions(twin: Twin) -> None:
    """A whole Mask2Former has the tensors that the twin has beside the release's own, and no other."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(num_labels=150, decoder_layers=LAYERS + 1))
    own, encoder = ("avs_adapt", "ref_avs_attn"), "model_v.model.pixel_level_module.encoder."
    wanted = {f"model_v.{name}" for name in whole.state_dict()}
    found = {name for name in twin.state_dict() if name.startswith("model_v.") and not any(one in name for one in own)}
    assert {name for name in wanted if not name.startswith(encoder)} == found - {f"{encoder}weight", f"{encoder}bias"}


def test_chosen_frames_are_those_of_all(head: ReleasedHead) -> None:
    batch, frames = make_batch([0, 1]), [0, 2]
    with torch.no_grad():
        torch.testing.assert_close(head(batch, ChosenSteps.of(frames)).mask_logits, head(batch).mask_logits[:, frames])


def test_expression_is_changed_by_the_one_beside_it(head: ReleasedHead) -> None:
    """As documented: the last attention runs across the batch."""
    both, alone = make_batch([0, 0]), make_batch([0])
    first = Batch(**{**vars(alone), "visual": both.visual, "audio": both.audio, "text": both.text[:1]})
    with torch.no_grad():
        assert (head(both).mask_logits[:1] - head(first).mask_logits).abs().max() > 1e-3


def test_padding_is_a_cue_like_words(head: ReleasedHead) -> None:
    batch = make_batch([0])
    text = batch.text.clone()
    text[:, -1] += 1
    with torch.no_grad():
        changed = head(Batch(**{**vars(batch), "text": text})).mask_logits
        assert not torch.equal(changed, head(batch).mask_logits)


def test_parts_are_trained_and_frozen_as_in_the_release(head: ReleasedHead, twin: Twin) -> None:
    names = ("audio_proj", "text_proj", "prompt_proj", "avs_adapt", "ref_avs_attn")
    trained = sum(weight.numel() for name, weight in twin.named_parameters() if any(part in name for part in names))
    assert sum(size.trained for size in head.part_sizes()) == trained
    assert sum(size.trained + size.frozen for size in head.part_sizes()) == sum(p.numel() for p in head.parameters())


def test_checkpoint_of_this_package_gives_the_same_head(head: ReleasedHead, tmp_path: Path) -> None:
    save_model(tmp_path, head)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(make_batch([0])).mask_logits, head(make_batch([0])).mask_logits)


def with_state(file: Path, path: Path, **changes: Any) -> Path:
    """A copy of the file with tensors replaced, or taken out where they are None; `__` stands for a dot."""
    state = torch.load(file, weights_only=True) | {name.replace("__", "."): value for name, value in changes.items()}
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


def test_swin_of_the_file_does_not_matter(file: Path, head: ReleasedHead, tmp_path: Path) -> None:
    swin = "model_v.model.pixel_level_module.encoder."
    path = with_state(file, tmp_path / "other.pth", **{f"{swin}weight": None, f"{swin}extra": torch.zeros(3)})
    other = make_head()
    load_released(path, other, ENCODERS)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in head.state_dict().items())


DECODER = "model_v.model.transformer_module."


@pytest.mark.parametrize(("changes", "found"), [
    ({f"{DECODER}decoder.layers.0.self_attn.q_proj.bias": None},
     f"lacks {DECODER}decoder.layers.0.self_attn.q_proj.bias;"),
    ({"mha_mm.in_proj_weight": None, f"{DECODER}queries_features.weight": None},
     f"lacks mha_mm.in_proj_weight, {DECODER}queries_features.weight;"),
    ({"model_v.model.pixel_level_module.encoders.x": torch.zeros(1), "mha_X.out_proj.bias": torch.zeros(1)},
     "has the unknown mha_X.out_proj.bias, model_v.model.pixel_level_module.encoders.x;"),
    ({"model_v.class_predictor.weight": torch.zeros(2, WIDTH)},
     f"has the wrong size of model_v.class_predictor.weight (2, {WIDTH}) instead of (151, {WIDTH});"),
    ({"text_proj.0.weight": torch.zeros(128, 768), "extra": torch.zeros(1)},
     f"has the unknown extra and has the wrong size of text_proj.0.weight (128, 768) instead of (128, {TEXT});"),
])  # fmt: skip
def test_file_with_other_tensors_is_refused(file: Path, tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    path = with_state(file, tmp_path / "other.pth", **changes)
    accepted = "accepted: ckpt_best_miou.pth of the release of Ref-AVS, on a store of refavs-extract --preset released"
    with pytest.raises(WeightsError, match=re.escape(f"{path} {found} {accepted}")):
        load_released(path, make_head(), ENCODERS)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("damage", ["truncated", "code", "text", "empty", "none", "folder"])
def test_file_that_is_not_a_state_dict_is_refused(file: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.pth"
    if damage == "code":
        torch.save({"mha_mm.in_proj_weight": Evil(tmp_path / "ran")}, path)
    elif damage == "folder":
        path.mkdir()
    elif damage != "none":
        content = file.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"<html>", "empty": b""}[damage])
    message = rf"{re.escape(str(path))} cannot be read \(.+\); accepted: ckpt_best_miou\.pth of .* download it again"
    with pytest.raises(WeightsError, match=message) as caught:
        load_released(path, make_head(), ENCODERS)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    for content in ({"epoch": 3, "model": {}}, [torch.zeros(1)], torch.zeros(2)):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="is not a state dict of plain tensors; accepted: ckpt_best_miou"):
            load_released(path, make_head(), ENCODERS)


def test_file_is_known_by_its_content(file: Path, tmp_path: Path) -> None:
    assert re.fullmatch("sha256:[0-9a-f]{64}", released_stamp(file))
    with pytest.raises(WeightsError, match=r"cannot be read \(.*No such file.*\); accepted: ckpt_best_miou"):
        released_stamp(tmp_path / "none.pth")


def test_store_with_other_text_is_refused(file: Path) -> None:
    encoders = {"text/roberta": {"name": "roberta", "sizes": {"num_layers": 12}}}
    message = r"text features of roberta \(12 layers, padding left out\); .* --preset released --levels backbone"
    with pytest.raises(StoreError, match=message):
        load_released(file, make_head(), encoders)


def test_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.channels=48 must be a multiple of 32, and the 64 channels"):
        make_head(channels=48)
