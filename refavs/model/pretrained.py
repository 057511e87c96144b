"""Loads the head's decoders from a Mask2Former checkpoint in transformers' format, tensor by tensor."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.finite import require_finite_weights
from refavs.model.decoder import MaskDecoder
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.options import EEMCOptions
from refavs.model.pixel_decoder import PixelDecoder

FOLDER, WEIGHTS, CONFIG = "mask2former", "model.safetensors", "config.json"
REPOSITORY = "facebook/mask2former-swin-base-ade-semantic"
PIXEL_DECODER = "model.pixel_level_module.decoder."
DECODER = "model.transformer_module."
CLASSES = "class_predictor."
# Not used here, because the queries come from the fusion.
UNUSED = {"queries_features.weight"}

_LAYER = r"decoder\.layers\.(\d+)\."
_RENAMES = (
    (rf"{_LAYER}cross_attn\.in_proj_(weight|bias)", r"layers.\1.cross_attention.project.\2"),
    (rf"{_LAYER}cross_attn\.out_proj\.(.+)", r"layers.\1.cross_attention.out.\2"),
    (rf"{_LAYER}cross_attn_layer_norm\.(.+)", r"layers.\1.cross_norm.\2"),
    (rf"{_LAYER}self_attn\.out_proj\.(.+)", r"layers.\1.self_attention.out.\2"),
    (rf"{_LAYER}self_attn_layer_norm\.(.+)", r"layers.\1.self_norm.\2"),
    (rf"{_LAYER}fc1\.(.+)", r"layers.\1.feedforward.0.\2"),
    (rf"{_LAYER}fc2\.(.+)", r"layers.\1.feedforward.3.\2"),
    (rf"{_LAYER}final_layer_norm\.(.+)", r"layers.\1.feedforward_norm.\2"),
    (r"decoder\.layernorm\.(.+)", r"norm.\1"),
    (r"input_projections\.(\d+)\.(.+)", r"level_projections.\1.\2"),
    (r"queries_embedder\.weight", r"query_positions"),
)
_SELF = re.compile(rf"{_LAYER}self_attn\.([qkv])_proj\.(weight|bias)")
_MASK_HEAD = re.compile(r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(weight|bias)")


@dataclass(frozen=True)
class WeightsFolder:
    """A folder with `model.safetensors`, as it is downloaded from the hub.

    Raises:
        WeightsError: the folder has no such file.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            pickled = " (its pytorch_model.bin is a pickle)" if (self.folder / "pytorch_model.bin").is_file() else ""
            raise WeightsError(f"{self.folder} has no {WEIGHTS}{pickled}; download the checkpoint with {self.fetch}")

    @property
    def repository(self) -> str:
        """The id on the hub."""
        raise NotImplementedError

    @property
    def fetch(self) -> str:
        """The command that downloads it."""
        return f"hf download {self.repository} --local-dir {self.folder}"

    @property
    def path(self) -> Path:
        """Path of the weights file."""
        return self.folder / WEIGHTS

    @property
    def stamp(self) -> str:
        """Digest of the file, equal to the one in the fingerprints of encoders loaded from it."""
        return file_stamp(self.path)

    def tensors(self, *prefixes: str) -> dict[str, Tensor]:
        """Reads only the tensors whose names start with one of `prefixes`, as float32.

        Raises:
            WeightsError: the file is damaged, not safetensors, or contains values that are not finite.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                found = {name: file.get_tensor(name).float() for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{self.path} is not a whole safetensors file ({error}); truncated copies and pickles are rejected: "
                f"download it again with {self.fetch}"
            ) from error
        require_finite_weights(self.path, found)
        return found


class Mask2Former(WeightsFolder):
    """A checkpoint in `DIR/mask2former`, as refavs-extract reads it from the same `--weights-dir DIR`."""

    @property
    def repository(self) -> str:
        return REPOSITORY

    @classmethod
    def within(cls, weights_dir: Path) -> "Mask2Former":
        """The checkpoint in the folder of all weights."""
        return cls(weights_dir / FOLDER)

    @property
    def config(self) -> dict[str, Any]:
        """Sizes that differ from those of transformers' `Mask2FormerConfig`.

        Raises:
            WeightsError: there is no such file, or it describes something else.
        """
        path = self.folder / CONFIG
        try:
            config = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{path} cannot be read ({error}); download the whole checkpoint with {self.fetch}"
            ) from error
        if not isinstance(config, dict) or config.get("model_type") != "mask2former":
            raise WeightsError(f"{path} describes no mask2former; fetch the checkpoint by {self.fetch}")
        return config


def load_decoders(
    decoder: MaskDecoder, pixel_decoder: PixelDecoder | None, checkpoint: Mask2Former, options: EEMCOptions
) -> list[str]:
    """Loads Mask2Former's weights into a head's decoders, which then compute the same as Mask2Former's.

    Differs from Mask2Former: the bias of each query's mask (see `MaskDecoder`) starts at zero and may be trained.

    Returns:
        Parts of the decoders that still start from random weights, each with the reason.

    Raises:
        WeightsError: the checkpoint is damaged or has other sizes.
    """
    _refuse_other_wiring(decoder, checkpoint, options)
    state = checkpoint.tensors(PIXEL_DECODER, DECODER, CLASSES)
    own = decoder_state(decoder, below(state, DECODER))
    fresh = []
    classes = below(state, CLASSES)
    if "weight" in classes and len(classes["weight"]) == len(decoder.class_head.weight):
        own |= {f"class_head.{name}": value for name, value in classes.items()}
    else:
        found = f"{len(classes['weight'])} outputs" if "weight" in classes else "none"
        fresh.append(f"class head (2 outputs here, {found} in the checkpoint)")
        own |= {f"class_head.{name}": value for name, value in decoder.class_head.state_dict().items()}
    _fill(decoder, own, checkpoint, "transformer decoder")
    if pixel_decoder is not None:
        _fill(pixel_decoder.decoder, below(state, PIXEL_DECODER), checkpoint, "pixel decoder")
    return fresh


def refuse_other_maps(
    sizes: FeatureSizes, checkpoint: Mask2Former, encoders: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks that the stored maps were made with the same weights that the decoders load.

    Args:
        encoders: fingerprints of the store's encoders.

    Raises:
        WeightsError: they were not; the message has both digests.
    """
    stamp = checkpoint.stamp
    for stream in dict.fromkeys(size.stream for size in sizes.maps):
        found = encoders.get(stream, {}).get("weights")
        if found != stamp:
            raise WeightsError(
                f"the store's maps {stream} were made with the weights {str(found)[:23]}, {checkpoint.path} is "
                f"{stamp[:23]}, whose decoder would not know them; extract with that folder as --weights-dir, or take "
                "--set model.decoder_weights=random"
            )


def _refuse_other_wiring(decoder: MaskDecoder, checkpoint: Mask2Former, known: EEMCOptions) -> None:
    """Checks the settings that tensor sizes do not show."""
    config, width = checkpoint.config, len(decoder.norm.weight)
    wiring = {"num_attention_heads": (8, known.num_heads), "pre_norm": (False, False),
              "activation_function": ("relu", "relu"), "hidden_dim": (256, width),
              "num_queries": (100, known.num_queries), "decoder_layers": (10, known.decoder_layers + 1),
              "dim_feedforward": (2048, known.decoder_feedforward_channels)}  # fmt: skip
    options = {"num_attention_heads": "num_heads", "hidden_dim": "channels", "num_queries": "num_queries",
               "decoder_layers": "decoder_layers", "dim_feedforward": "decoder_feedforward_channels"}  # fmt: skip
    for name, (usual, wanted) in wiring.items():
        found = config.get(name, usual)
        if found == wanted:
            continue
        value = found - 1 if name == "decoder_layers" else found
        fix = f"--set model.{options[name]}={value}" if name in options else f"a checkpoint such as {REPOSITORY}"
        raise WeightsError(f"{checkpoint.folder / CONFIG} says {name}={found}, the head has {wanted}; use {fix}")


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def decoder_state(decoder: MaskDecoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mask2Former's transformer decoder with the names of `MaskDecoder`, without the class head."""
    own: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name in UNUSED:
            continue
        if match := _SELF.fullmatch(name):
            layer, part, kind = match.groups()
            attention.setdefault(f"layers.{layer}.self_attention.project.{kind}", {})[part] = value
        elif match := _MASK_HEAD.fullmatch(name):
            last = match[1] == "2"
            own[f"mask_head.{2 * int(match[1])}.{match[2]}"] = nn.functional.pad(
                value, [*[0] * (2 * value.ndim - 1), 1]
            ) if last else value
        elif name == "level_embed.weight":
            own |= {f"level_embeddings.{level}": row for level, row in enumerate(value[: decoder.levels_read])}
        else:
            own |= dict(_renamed(name, value))
    for target, parts in attention.items():
        if set(parts) == set("qkv"):
            own[target] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return own


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            if name.startswith("input_projections") and value.ndim == 4:
                value = rearrange(value, "out c 1 1 -> out c")
            yield re.sub(pattern, replacement, name), value
            return
    yield name, value


def _fill(module: nn.Module, state: Mapping[str, Tensor], checkpoint: Mask2Former, part: str) -> None:
    """Loads `state`, which must have exactly the tensors of `module`, with the same sizes."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if wrong := mismatch(expected, {name: tuple(value.shape) for name, value in state.items()}):
        raise WeightsError(
            f"the {part} of {checkpoint.path} {wrong}; use {REPOSITORY} with the default sizes of the options, or "
            "--set model.decoder_weights=random"
        )
    module.load_state_dict(dict(state))


def mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Describes how a checkpoint's names and shapes differ, as a predicate for a message; empty if they match."""
    other = [f"{name} {found[name]} instead of {shape}" for name, shape in expected.items()
             if name in found and found[name] != shape]  # fmt: skip
    lists = {"lacks": sorted(expected.keys() - found.keys()), "has the unknown": sorted(found.keys() - expected.keys()),
             "has the wrong size of": other}  # fmt: skip
    wrong = [f"{verb} {', '.join(names[:3])}{' ...' * (len(names) > 3)}" for verb, names in lists.items() if names]
    return " and ".join(wrong)
