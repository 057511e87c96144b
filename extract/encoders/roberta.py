"""RoBERTa: the token features of one expression, padded to a fixed number of tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from extract.encoders.networks import fill, frozen, load_tensors, randomly
from extract.encoders.protocol import Encoder, EncoderSetup, Text
from extract.encoders.weights import TENSOR_FILES, WeightPart, from_hub, in_folder, weights_stamp
from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.store.format.schema import ArraySpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PAD = 1
MOST_NAMED = 20
# Used by an encoder without pretrained weights, and wherever weights are random and no other tokenizer is at hand.
TOKENIZER = Path(__file__).parents[1] / "presets" / "tiny" / "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class RobertaSettings:
    """Sizes of a RoBERTa.

    Attributes:
        length: tokens per expression, start and end included.
        repository: on the hub; its last part names the folder within that of all weights. None where there are no
            pretrained weights, whatever the user chose.
        keeps_padding: padding keeps its features, which the network computes like any other token's.
    """

    length: int
    channels: int
    num_layers: int
    num_heads: int
    feedforward_channels: int
    vocabulary: int
    repository: str | None = None
    keeps_padding: bool = False

    @property
    def folder(self) -> str:
        """Where the weights lie within the folder of all weights."""
        return (self.repository or "").split("/")[-1]


@dataclass
class RobertaEncoder(Encoder):
    """One expression to its token features, float16, and which of the tokens are real; always in fp32."""

    name: str
    settings: RobertaSettings
    setup: EncoderSetup
    licence: str = "MIT"
    num_parameters: int = 0

    def __post_init__(self) -> None:
        self.modality = "text"
        self.takes = Text()
        self.weights = self.settings.repository or "random"

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about network and tokenizer."""
        shipped = " of this package" if self._tokenizer_file == TOKENIZER else ""
        # Where the weights lie, and what is done with padding, are no sizes.
        sizes = {k: v for k, v in vars(self.settings).items() if k not in ("repository", "keeps_padding")}
        facts = {
            "name": self.name,
            "weights": weights_stamp(self._weights_file, self.setup.weights.seed), "input_size": self.settings.length,
            "precision": "fp32", "dtype": "float16", "sizes": sizes,
            "preprocessing": f"byte-level BPE{shipped} {file_stamp(self._tokenizer_file)}, cut after the last token",
        }
        return {**facts, "padding": "kept"} if self.settings.keeps_padding else facts

    def arrays(self, seconds: int) -> dict[str, list[ArraySpec]]:
        """Token features and `valid`."""
        length = self.settings.length
        return {"": [
            ArraySpec(name="features", shape=(length, self.settings.channels), dtype="float16", axes=("l", "c"),
                      statistics=True, valid="valid"),
            ArraySpec(name="valid", shape=(length,), dtype="bool", axes=("l",)),
        ]}  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file and the tokenizer's."""
        fetch = f"hf download {self.settings.repository} --local-dir {{folder}}/{self.settings.folder}"
        return [
            WeightPart(name=self.name, find=lambda: self._weights_file, load=lambda: self._network, fetch=fetch),
            WeightPart(name=f"{self.name}, tokenizer", load=lambda: self._tokenizer, fetch=fetch,
                       find=lambda: None if self._tokenizer_file == TOKENIZER else self._tokenizer_file),
        ]  # fmt: skip

    def prepare(self, item: str) -> "Encoding":
        """The tokens of one expression."""
        return self._tokenizer.encode(item)

    @torch.no_grad()
    def encode(self, batch: "Sequence[Encoding]", levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Features of each expression; those of padding are zero, unless they are kept.

        A GPU takes all of them in one pass, a processor one by one, so that no expression depends on its company.
        """
        if self.setup.device == "cpu":
            return [found for item in batch for found in self._features([item])]
        return self._features(batch) if batch else []

    def _features(self, items: "Sequence[Encoding]") -> list[dict[str, np.ndarray]]:
        ids = torch.tensor([item.ids for item in items]).to(self.setup.device)
        valid = torch.tensor([item.attention_mask for item in items]).bool().to(self.setup.device)
        features = self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        if not self.settings.keeps_padding:
            features = torch.where(rearrange(valid, "b l -> b l 1"), features, 0.0)
        return [{"features": one, "valid": real}
                for one, real in zip(features.half().cpu().numpy(), valid.cpu().numpy(), strict=True)]  # fmt: skip

    def remarks(self, items: Sequence[str]) -> list[str]:
        """Names the expressions that have more tokens than fit."""
        cut = self.overlong(items)
        if not cut:
            return []
        named = [f"  {length} tokens: {text!r}" for text, length in list(cut.items())[:MOST_NAMED]]
        more = [f"  and {len(cut) - MOST_NAMED} more"] if len(cut) > MOST_NAMED else []
        return [f"{self.name}: {len(cut)} expressions have more than {self.settings.length} tokens and lose their end:",
                *named, *more]  # fmt: skip

    def num_tokens(self, text: str) -> int:
        """Tokens of a text before it is cut, start and end included."""
        return len(self._whole.encode(text).ids)

    def overlong(self, texts: Iterable[str]) -> dict[str, int]:
        """Tokens of those texts that have more than fit and lose their end."""
        lengths = {text: self.num_tokens(text) for text in texts}
        return {text: length for text, length in lengths.items() if length > self.settings.length}

    @cached_property
    def _weights_file(self) -> Path | None:
        weights, settings = self.setup.weights, self.settings
        if weights.kind == "random" or settings.repository is None:
            return None
        if weights.folder is not None:
            return in_folder(weights.folder, *(f"{settings.folder}/{name}" for name in TENSOR_FILES))
        return from_hub(settings.repository, *TENSOR_FILES, fetch=weights.fetch)

    @cached_property
    def _tokenizer_file(self) -> Path:
        weights, settings = self.setup.weights, self.settings
        if settings.repository is None:
            return TOKENIZER
        here = None if weights.folder is None else weights.folder / settings.folder
        if weights.kind == "random" and (here is None or not (here / "tokenizer.json").is_file()):
            return TOKENIZER
        if weights.folder is not None and here is not None and here.is_dir():
            return in_folder(weights.folder, f"{settings.folder}/tokenizer.json")
        return from_hub(settings.repository, "tokenizer.json", fetch=weights.fetch)

    @cached_property
    def _whole(self) -> "Tokenizer":
        return read_tokenizer(self._tokenizer_file)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        tokenizer = read_tokenizer(self._tokenizer_file)
        tokenizer.enable_truncation(self.settings.length)
        tokenizer.enable_padding(length=self.settings.length, pad_id=PAD, pad_token="<pad>")
        if tokenizer.get_vocab_size() > self.settings.vocabulary:
            raise WeightsError(
                f"tokenizer {self._tokenizer_file} has {tokenizer.get_vocab_size()} tokens, the text encoder "
                f"{self.settings.vocabulary}; accepted: the tokenizer.json of roberta-base"
            )
        return tokenizer

    @cached_property
    def _network(self) -> nn.Module:
        network = randomly(lambda: build_roberta(self.settings), self.setup.weights.seed)
        if self._weights_file is not None:
            state = load_tensors(self._weights_file)
            inside = {_present_name(key): value for key, value in state.items()}
            names = network.state_dict().keys()
            fill(network, {key: value for key, value in inside.items() if key in names}, self._weights_file)
        return frozen(network, self.setup.device, torch.float32)


def _present_name(key: str) -> str:
    """The name of a weight in transformers 5; checkpoints converted from TensorFlow say gamma and beta."""
    name = key.removeprefix("roberta.")
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        name = name.replace(old, new)
    return name


def build_roberta(settings: RobertaSettings) -> nn.Module:
    """A RoBERTa with fresh weights from torch's global generator."""
    ensure_torchvision()
    from transformers.models.roberta.configuration_roberta import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaModel

    config = RobertaConfig(
        vocab_size=settings.vocabulary, hidden_size=settings.channels, num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads, intermediate_size=settings.feedforward_channels,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
        layer_norm_eps=1e-5,
    )
    return RobertaModel(config, add_pooling_layer=False)


def read_tokenizer(path: Path) -> "Tokenizer":
    """A tokenizer from its JSON file, without cutting or padding.

    Raises:
        WeightsError: the file is not a tokenizer's.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise WeightsError(
            f"tokenizer {path} cannot be read ({error}); accepted: the tokenizer.json of roberta-base"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


BASE = RobertaSettings(
    length=25, channels=768, num_layers=12, num_heads=12, feedforward_channels=3072, vocabulary=50265,
    repository="FacebookAI/roberta-base",
)  # fmt: skip
TINY = RobertaSettings(length=16, channels=128, num_layers=2, num_heads=4, feedforward_channels=512, vocabulary=1024)


def roberta_base(setup: EncoderSetup) -> RobertaEncoder:
    """The paper's."""
    return RobertaEncoder("roberta-base", BASE, setup, "MIT", 124_055_040)


def distilroberta_base(setup: EncoderSetup) -> RobertaEncoder:
    """That of the paper's public release, which keeps the features of padding."""
    settings = replace(BASE, num_layers=6, repository="distilbert/distilroberta-base", keeps_padding=True)
    return RobertaEncoder("distilroberta-base", settings, setup, "Apache-2.0", 81_527_808)


def tiny_roberta(setup: EncoderSetup) -> RobertaEncoder:
    """A small RoBERTa with random weights, for demonstrations."""
    return RobertaEncoder("tiny-roberta", TINY, setup, "Apache-2.0", 593_792)
