"""The text stream: RoBERTa over one expression, padded to a fixed number of tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from extract.encoders import frozen
from extract.encoders.weights import (
    TENSOR_FILES,
    WeightPart,
    WeightSource,
    fill,
    from_hub,
    in_folder,
    load_tensors,
    random_stamp,
    randomly,
)
from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.store.format.schema import ArraySpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FEATURES, VALID = "text/roberta/features", "text/roberta/valid"
PAD = 1


@dataclass(frozen=True, kw_only=True)
class RobertaSettings:
    """Sizes of a RoBERTa.

    Attributes:
        length: tokens per expression, start and end included.
        tokenizer: file in the package, used by a preset that ships its own and wherever weights are random and no
            other tokenizer is at hand.
        always_random: a preset that ships no weights keeps to its generator, whatever the user chose.
        repository: on the hub; its last part names the folder within that of all weights.
        keeps_padding: padding keeps its features, which the network computes like any other token's.
    """

    length: int
    channels: int
    num_layers: int
    num_heads: int
    feedforward_channels: int
    vocabulary: int
    tokenizer: Path
    always_random: bool = False
    repository: str = "FacebookAI/roberta-base"
    keeps_padding: bool = False

    @property
    def folder(self) -> str:
        """Where the weights lie within the folder of all weights."""
        return self.repository.split("/")[1]


@dataclass
class RobertaEncoder:
    """One expression to its token features, float16, and which of the tokens are real."""

    settings: RobertaSettings
    weights: WeightSource
    device: str = "cpu"

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Facts about network and tokenizer."""
        stamp = random_stamp(self.weights.seed) if self._weights_file is None else file_stamp(self._weights_file)
        shipped = " of this package" if self._tokenizer_file == self.settings.tokenizer else ""
        # Where the tokenizer lies on this machine, and why weights are random, change no value.
        other = ("tokenizer", "always_random", "repository", "keeps_padding")
        sizes = {k: v for k, v in vars(self.settings).items() if k not in other}
        facts = {
            "name": "roberta", "weights": stamp, "input_size": self.settings.length, "precision": "fp32",
            "dtype": "float16", "sizes": sizes,
            "preprocessing": f"byte-level BPE{shipped} {file_stamp(self._tokenizer_file)}, cut after the last token",
        }
        return {"text": {**facts, "padding": "kept"} if self.settings.keeps_padding else facts}

    def specs(self) -> Sequence[ArraySpec]:
        """Token features and `valid`."""
        length = self.settings.length
        return [
            ArraySpec(path=FEATURES, shape=(length, self.settings.channels), dtype="float16", axes=("l", "c"),
                      statistics=True, valid=VALID),
            ArraySpec(path=VALID, shape=(length,), dtype="bool", axes=("l",)),
        ]  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file and the tokenizer's."""
        fetch = f"hf download {self.settings.repository} --local-dir {{folder}}/{self.settings.folder}"
        shipped = self.settings.tokenizer
        return [
            WeightPart(name="text, RoBERTa", find=lambda: self._weights_file, load=lambda: self._network, fetch=fetch),
            WeightPart(name="text, tokenizer", load=lambda: self._tokenizer, fetch=fetch,
                       find=lambda: None if self._tokenizer_file == shipped else self._tokenizer_file),
        ]  # fmt: skip

    def prepare(self, item: str) -> "Encoding":
        """The tokens of one expression."""
        return self._tokenizer.encode(item)

    @torch.no_grad()
    def encode(self, items: Sequence["Encoding"]) -> list[dict[str, np.ndarray]]:
        """Features of each expression; those of padding are zero, but where they are kept.

        A GPU takes all of them in one pass, a processor one by one, so that no expression depends on its company.
        """
        if self.device == "cpu":
            return [found for item in items for found in self._features([item])]
        return self._features(items) if items else []

    def _features(self, items: Sequence["Encoding"]) -> list[dict[str, np.ndarray]]:
        ids = torch.tensor([item.ids for item in items]).to(self.device)
        valid = torch.tensor([item.attention_mask for item in items]).bool().to(self.device)
        features = self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        if not self.settings.keeps_padding:
            features = torch.where(rearrange(valid, "b l -> b l 1"), features, 0.0)
        return [{FEATURES: one, VALID: real}
                for one, real in zip(features.half().cpu().numpy(), valid.cpu().numpy(), strict=True)]  # fmt: skip

    def num_tokens(self, text: str) -> int:
        """Tokens of a text before it is cut, start and end included."""
        return len(self._whole.encode(text).ids)

    def overlong(self, texts: Iterable[str]) -> dict[str, int]:
        """Tokens of those texts that have more than fit and lose their end."""
        lengths = {text: self.num_tokens(text) for text in texts}
        return {text: length for text, length in lengths.items() if length > self.settings.length}

    @cached_property
    def _weights_file(self) -> Path | None:
        if self.weights.kind == "random" or self.settings.always_random:
            return None
        if self.weights.folder is not None:
            return in_folder(self.weights.folder, *(f"{self.settings.folder}/{name}" for name in TENSOR_FILES))
        return from_hub(self.settings.repository, *TENSOR_FILES, fetch=self.weights.fetch)

    @cached_property
    def _tokenizer_file(self) -> Path:
        if self.settings.always_random:
            return self.settings.tokenizer
        if self.weights.folder is not None and (self.weights.folder / self.settings.folder).is_dir():
            return in_folder(self.weights.folder, f"{self.settings.folder}/tokenizer.json")
        if self.weights.kind == "random":
            return self.settings.tokenizer
        return from_hub(self.settings.repository, "tokenizer.json", fetch=self.weights.fetch)

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
        network = randomly(lambda: build_roberta(self.settings), self.weights.seed)
        if self._weights_file is not None:
            state = load_tensors(self._weights_file)
            inside = {_present_name(key): value for key, value in state.items()}
            names = network.state_dict().keys()
            fill(network, {key: value for key, value in inside.items() if key in names}, self._weights_file)
        return frozen(network, self.device, torch.float32)


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
