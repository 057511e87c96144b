"""The public release of Ref-AVS, reproduced so that its own checkpoint can be evaluated here.

It is not the method of the paper (see `ReleasedHead`) and is not trained here. It needs a store with the level
`backbone` and the text features of the preset `released`.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from refavs.config import file_stamp
from refavs.data.batches import Batch
from refavs.data.clip_groups import ClipGroups
from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.finite import require_finite_weights
from refavs.model.attention import attend
from refavs.model.batch_cache import Once
from refavs.model.decoder import EEMCOutput, MaskDecoder, predict
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes
from refavs.model.heads.options import ReleasedOptions
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import eemc_loss
from refavs.model.options import LossConfig
from refavs.model.pickled import load_pickled
from refavs.model.pixel_decoder import PixelDecoder, PixelDecoderSettings
from refavs.model.pretrained import CLASSES, DECODER, PIXEL_DECODER, below, decoder_state, mismatch
from refavs.model.target import Target

NUM_HEADS, PROMPT_HEADS = 8, 4
NUM_CLASSES = 151  # the classes of ADE20k and "no object"; the release reads the first and the last
GROUPS = 32  # in the pixel decoder's normalisation
CERTAIN = 1000.0

FILE = "ckpt_best_miou.pth"
THEIRS = "model_v."
SWIN = f"{THEIRS}model.pixel_level_module.encoder."  # not loaded: the store has its maps
UNUSED = f"{THEIRS}criterion.empty_weight"  # belongs to a loss
QUERIES, PROMPTING = "queries_features.weight", "ref_avs_attn."
FUSION = ("audio_proj", "text_proj", "prompt_proj", "mha_A_T", "mha_V_T", "mha_mm")


class ReleasedHead(Head):
    """The computation of the release, from stored features. Module names are those of its checkpoint.

    It follows the paper's wiring with other parts: one attention per pair of modalities and one over all cues, with
    random weights that were never trained; 1024 channels; adapters in Mask2Former's pixel decoder; one mask, the sum
    of all queries' mask logits weighted by class. These peculiarities of the release are reproduced:

    - A visual token is a run of 1024 values of a frame's last map in memory order, channel after channel. It therefore
      contains pixels of about seven channels rather than all channels of one pixel.
    - The memory is the running mean of all tokens up to and including the current one, over frames and pixels in a row.
    - The audio of all steps and the text are cues of every frame; padding is not masked.
    - The attention over all cues runs **across the batch**: each cue of an expression attends to the same cue of the
      other expressions in the batch. Predictions therefore depend on them and on the batch size. The release evaluates
      batches of four in the order of its file; train.eval_batch_size=4 is closest, with batches in clip order.

    Differs: features come from the store, in float16 and from the encoders of this package (audio from the start of
    each step); mask logits are summed before resizing, which is linear; the sigmoid is applied at 384 x 384, before
    the release's own protocol resizes to 256 x 256.
    """

    losses: ClassVar[tuple[str, ...]] = ("bce", "dice", "classification")
    own_format: ClassVar[bool] = True

    def __init__(self, options: ReleasedOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, wide = options.channels, sizes.maps[-1].channels
        if width % GROUPS or wide % NUM_HEADS:
            raise ConfigError(
                f"model.channels={width} must be a multiple of {GROUPS}, and the {wide} channels of the store's last "
                f"map a multiple of {NUM_HEADS}; the release has 256 and 1024"
            )
        assert sizes.audio is not None and sizes.text is not None
        self.audio_proj = _projection(sizes.audio.channels, 2 * wide, wide)
        self.text_proj = _projection(sizes.text.channels, 2 * wide, wide)
        self.prompt_proj = _projection(wide, 2 * wide, width)
        self.mha_A_T, self.mha_V_T, self.mha_mm = (nn.MultiheadAttention(wide, NUM_HEADS) for _ in range(3))
        widths = tuple(size.channels for size in sizes.maps)
        settings = PixelDecoderSettings(in_channels=widths, channels=width, mask_channels=width)
        self.pixel_decoder, self.stride = PixelDecoder(settings), settings.strides[0]
        layers = self.pixel_decoder.decoder.encoder.layers
        adapters = [_adapted(layer.get_submodule("self_attn"), width) for layer in layers]
        self.query_features = nn.Parameter(torch.randn(options.num_queries, width))
        self.prompting = ReleasedPrompting(width)
        self.decoder = MaskDecoder(
            width, NUM_HEADS, options.decoder_layers, options.decoder_feedforward_channels, 0.0,
            num_queries=options.num_queries, mask_channels=width, level_channels=(width,) * len(LEVELS),
        )
        self.requires_grad_(False)
        for part in (self.audio_proj, self.text_proj, self.prompt_proj, self.prompting, *adapters):
            part.requires_grad_(True)  # as in the release

    def parts(self) -> dict[str, nn.Module]:
        return {
            "class head": self.decoder.class_head, "transformer decoder": self.decoder,
            "pixel decoder": self.pixel_decoder, "fusion": self,
        }  # fmt: skip

    def load_own(self, path: Path, encoders: Mapping[str, Mapping[str, Any]]) -> None:
        """Loads the release's checkpoint; see `load_released`."""
        load_released(path, self, encoders)

    @classmethod
    def own_stamp(cls, path: Path) -> str:
        """The digest of the release's checkpoint."""
        return released_stamp(path)

    def loss(self, output: EEMCOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Losses of the single mask, for reporting; nothing is trained."""
        return eemc_loss(output, target, weights)

    def probs(self, output: EEMCOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The sigmoid of the single mask."""
        return predict(output, size)

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> EEMCOutput:
        """Returns one query per expression, which is certainly the object and whose mask is the release's mask.

        The mask features are that mask itself; each side is four times that of the finest map.
        """
        maps, prompts = self._maps(batch), self._prompts(batch)
        if steps is not None:
            maps, prompts = {name: one[:, steps.index] for name, one in maps.items()}, prompts[:, steps.index]
        shape = {"b": len(batch), "t": prompts.shape[1]}
        queries = self.prompting(self.query_features, rearrange(prompts, "b t k c -> (b t) k c"))
        queries = rearrange(queries, "(b t) q c -> b t q c", **shape)
        output = self.decoder(queries, maps[MASKS], [maps[name] for name in LEVELS], batch.groups)
        weights = output.class_logits.softmax(dim=-1)[..., :1]
        output.mask_embeddings = reduce(weights * output.mask_embeddings, "b t q c -> b t 1 c", "sum")
        logits = rearrange(output.mask_logits, "b t 1 h w -> b t h w").float()
        logits = nn.functional.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)
        one, zero = (logits.new_full((shape["b"], shape["t"], 1, 1), value) for value in (1.0, 0.0))
        return EEMCOutput(
            mask_embeddings=torch.cat([one, zero], dim=-1), mask_features=rearrange(logits, "b t h w -> b t 1 h w"),
            groups=ClipGroups.of(range(len(batch)), len(batch)).to(logits.device),
            class_logits=torch.cat([zero, zero - CERTAIN], dim=-1),
        )  # fmt: skip

    def _maps(self, batch: Batch) -> dict[str, Float[Tensor, "u t _ _ _"]]:
        """Runs the pixel decoder on the stored maps."""
        names = [size.name for size in self.sizes.maps]
        pyramid = {name: rearrange(batch.visual[name].float(), "u t c h w -> (u t) c h w") for name in names}
        decoded = self.pixel_decoder(pyramid).items()
        return {name: rearrange(one, "(u t) c h w -> u t c h w", t=batch.audio.shape[1]) for name, one in decoded}

    def _prompts(self, batch: Batch) -> Float[Tensor, "b t k c"]:
        """The cues of each frame: audio of all steps, a tag, the frame's visual tokens, a tag, text."""
        last = batch.visual[self.sizes.maps[-1].name].float()
        visual = rearrange(last, "u t d h w -> u (t d h w)")
        visual = batch.of_expressions(rearrange(visual, "u (n d) -> u n d", d=last.shape[2]))
        audio, text = batch.of_expressions(self.audio_proj(batch.audio.float())), self.text_proj(batch.text.float())
        audio, text_with_audio = _fused(self.mha_A_T, audio, text)
        visual, text_with_visual = _fused(self.mha_V_T, visual, text)
        text = (text + text_with_audio + text_with_visual) / 3
        visual = rearrange(_against_memory(visual), "b (t n) d -> b t n d", t=last.shape[1])
        tags = torch.zeros_like(visual[:, :, :1]), torch.ones_like(visual[:, :, :1])
        audio, text = (
            repeat(tokens, "b k d -> b t k d", t=last.shape[1]) for tokens in (_against_memory(audio), text)
        )
        cues = torch.cat([audio, tags[0], visual, tags[1], text], dim=2)
        across = rearrange(cues, "b t k d -> b (t k) d")  # the attention treats the first axis as the sequence
        across, _ = self.mha_mm(across, across, across, need_weights=False)
        return self.prompt_proj(rearrange(across, "b (t k) d -> b t k d", t=last.shape[1]))


class ReleasedPrompting(nn.Module):
    """Adds to the queries their attention over the cues and the mean of the cues, each through a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_embedding, self.key_embedding, self.value_embedding, self.out_projection = (
            nn.Linear(channels, channels) for _ in range(4)
        )
        self.beta_source_pool = nn.Parameter(torch.ones(1))
        self.beta_source_attn = nn.Parameter(torch.ones(1))

    def forward(self, queries: Float[Tensor, "q c"], cues: Float[Tensor, "s k c"]) -> Float[Tensor, "s q c"]:
        projected = (
            self.query_embedding(rearrange(queries, "q c -> 1 q c")), self.key_embedding(cues),
            self.value_embedding(cues),
        )  # fmt: skip
        attended = attend(*(rearrange(one, "s k (m d) -> s m k d", m=PROMPT_HEADS) for one in projected))
        attended = self.out_projection(rearrange(attended, "s m q d -> s q (m d)"))
        pooled = reduce(cues, "s k c -> s 1 c", "mean")
        return queries + self.beta_source_attn.sigmoid() * attended + self.beta_source_pool.sigmoid() * pooled


def load_released(path: Path, model: ReleasedHead, encoders: Mapping[str, Mapping[str, Any]]) -> None:
    """Loads the release's checkpoint, a pickled state dict of the whole model, without running code from the pickle.

    Args:
        encoders: fingerprints of the encoders of the store that the model will read.

    Raises:
        WeightsError: the file is missing, damaged or not a state dict, or its tensors are not those of the release.
        StoreError: the store's text features are not the ones that the release reads.
    """
    _refuse_other_text(encoders)
    state = _read(path)
    found = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(SWIN)}
    if wrong := mismatch(_released_shapes(model), found):
        raise WeightsError(
            f"{path} {wrong}; accepted: {FILE} of the release of Ref-AVS, on a store of refavs-extract --preset "
            "released, with all model.* settings at their defaults"
        )
    theirs = below(state, THEIRS)
    module, classes = below(theirs, DECODER), below(theirs, CLASSES)
    prompting = below(module, PROMPTING)
    module = {name: value for name, value in module.items() if not name.startswith(PROMPTING)}
    decoder = decoder_state(model.decoder, module)
    own = {name: value for name, value in state.items() if name.startswith(FUSION)}
    own |= {f"pixel_decoder.decoder.{name}": value for name, value in below(theirs, PIXEL_DECODER).items()}
    own |= {f"prompting.{name}": value for name, value in prompting.items()}
    own |= {f"decoder.{name}": value for name, value in decoder.items()}
    own |= {f"decoder.class_head.{name}": value[[0, -1]] for name, value in classes.items()}
    model.load_state_dict({**own, "query_features": module[QUERIES]})


def released_stamp(path: Path) -> str:
    """The digest of the release's checkpoint.

    Raises:
        WeightsError: there is no such file.
    """
    try:
        return file_stamp(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _refuse_other_text(encoders: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the text encoder by its fingerprint, because features of other encoders have the same size."""
    facts = next((facts for stream, facts in encoders.items() if stream.startswith("text/")), {})
    if facts.get("padding") != "kept":
        layers = facts.get("sizes", {}).get("num_layers", "unknown")
        raise StoreError(
            f"the store has text features of {facts.get('name', 'an unknown encoder')} ({layers} layers, padding left "
            "out); model.head=released reads those of distilroberta-base with its padding: extract a separate store "
            "with refavs-extract --preset released --levels backbone"
        )


def _projection(in_channels: int, hidden_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Linear(hidden_channels, channels)
    )


def _adapted(attention: nn.Module, channels: int) -> nn.Sequential:
    """Adds an adapter to a deformable attention; the attention's output passes through it, without a residual."""
    adapter = _projection(channels, channels // 4, channels)
    attention.add_module("avs_adapt", adapter)
    attention.register_forward_hook(_through_adapter)
    return adapter


def _through_adapter(attention: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return attention.get_submodule("avs_adapt")(output[0]), output[1]


def _fused(
    attention: nn.MultiheadAttention, tokens: Float[Tensor, "b n d"], text: Float[Tensor, "b l d"]
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b l d"]]:
    """Applies one attention over both, within each expression, and returns them separately."""
    joined = rearrange(torch.cat([tokens, text], dim=1), "b k d -> k b d")
    joined, _ = attention(joined, joined, joined, need_weights=False)
    joined = rearrange(joined, "k b d -> b k d")
    return joined[:, : tokens.shape[1]], joined[:, tokens.shape[1] :]


def _against_memory(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Twice each token minus the mean of all tokens up to and including it."""
    counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return 2 * tokens - tokens.cumsum(dim=1) / rearrange(counts, "n -> n 1")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = load_pickled(path)
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} is not a state dict of plain tensors; accepted: {FILE} as the release saves it")
    require_finite_weights(path, state)
    return state


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(
        f"{path} cannot be read ({reason}); accepted: {FILE} of the release of Ref-AVS, a pickled state dict of plain "
        "tensors; truncated copies, and pickles that hold anything else, are rejected: download it again"
    )


def _released_shapes(model: ReleasedHead) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the release's checkpoint except Swin's, by their names there."""
    from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    options, width = model.options, model.options.channels
    with torch.device("meta"):
        module = Mask2FormerTransformerModule(in_features=width, config=Mask2FormerConfig(
            hidden_dim=width, feature_size=width, mask_feature_size=width, num_attention_heads=NUM_HEADS,
            dim_feedforward=options.decoder_feedforward_channels, decoder_layers=options.decoder_layers + 1,
            num_queries=options.num_queries,
        ))  # fmt: skip
        classes = nn.Linear(width, NUM_CLASSES)
    own = {f"{part}.": model.get_submodule(part) for part in FUSION} | {
        THEIRS + PIXEL_DECODER: model.pixel_decoder.decoder, THEIRS + DECODER: module,
        THEIRS + DECODER + PROMPTING: model.prompting, THEIRS + CLASSES: classes,
    }  # fmt: skip
    shapes = {prefix + name: tuple(value.shape) for prefix, part in own.items()
              for name, value in part.state_dict().items()}  # fmt: skip
    return {**shapes, UNUSED: (NUM_CLASSES,)}
