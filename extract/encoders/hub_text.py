"""Text encoders: what the families share, from the tokens of one expression to the arrays of its streams."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_folder import HubFolder
from extract.encoders.hub_tower import HubTower
from extract.encoders.networks import each_in_one_thread
from extract.encoders.protocol import Encoder, EncoderSetup, Text
from extract.encoders.tokens import SHIPPED, WHOLE, byte_level, read_tokenizer, tokenizer_files
from extract.encoders.weights import WeightPart, WeightSource
from refavs.choices import Precision
from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.store.format.schema import ArraySpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_NAMED = 20
ROWS = 8  # expressions in one pass on a CPU; three times as fast as one by one
Kind = Literal["tokens", "pooled"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """One text encoder of a family.

    Attributes:
        length: tokens of an expression, those that the tokenizer adds included.
        config: of the text tower, in the names of the hub's config.json; the published one, for random weights.
        repository: on the hub; its last part names the folder within that of all weights. None where there are no
            pretrained weights, whatever the user chose.
        tokenizer: repository of the tokenizer; None where it is that of the weights.
        keeps_padding: padding up to `length` keeps its features, which the network computes like any other token's.
    """

    length: int
    config: Mapping[str, Any] = field(hash=False)
    repository: str | None = None
    tokenizer: str | None = None
    keeps_padding: bool = False


@dataclass
class TextEncoder(HubTower, Encoder):
    """One expression to its token features, to one vector, or to both, float16; in fp32 unless the family says more.

    Each level has `features` and `valid`, which says what of the features is real. A level of one vector has them as
    a single token, so that a head reads either.

    Attributes:
        levels: what each level holds.
        size_names: names of the sizes in the config.
        older_tokenizer: files of the tokenizer where there is no tokenizer.json.
        from_older: reads these.
        tokenizer_kind: for the fingerprint.
    """

    name: str
    settings: TextSettings
    setup: EncoderSetup
    licence: str = "MIT"
    num_parameters: int = 0

    levels: ClassVar[Mapping[str, Kind]] = {"": "tokens"}
    size_names: ClassVar[Mapping[str, str]] = {
        "channels": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
        "feedforward_channels": "intermediate_size", "vocabulary": "vocab_size",
    }  # fmt: skip
    pooled_name: ClassVar[str] = "hidden_size"
    older_tokenizer: ClassVar[Sequence[str]] = ("vocab.json", "merges.txt")
    from_older: ClassVar[Callable[..., Any]] = staticmethod(byte_level)
    tokenizer_kind: ClassVar[str] = "byte-level BPE"
    pooling: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.modality = "text"
        self.takes = Text()
        self.weights = self.settings.repository or "random"

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The token features, the vectors, or both."""
        raise NotImplementedError

    @property
    def precision(self) -> Precision:
        """In which the tower computes."""
        return "fp32"

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about network and tokenizer."""
        files = self._tokenizer_files
        shipped = " of this package" if files == [SHIPPED] else ""
        sizes = {"length": self.settings.length} | {ours: self.config[its] for ours, its in self.size_names.items()}
        facts = {
            "name": self.name, "weights": self._hub.stamp(), "input_size": self.settings.length,
            "precision": self.precision, "dtype": "float16", "sizes": sizes,
            "preprocessing": f"{self.tokenizer_kind}{shipped} {file_stamp(*files)}, cut after the last token",
        }  # fmt: skip
        if self.levels[level] == "pooled":
            return {**facts, "output": self.pooling}
        return {**facts, "padding": "kept"} if self.settings.keeps_padding else facts

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """Features and `valid` of each level."""
        shapes = {"tokens": (self.settings.length, self.config[self.size_names["channels"]]),
                  "pooled": (1, self.config[self.pooled_name])}  # fmt: skip
        return {
            level: [
                ArraySpec(name="features", shape=shapes[kind], dtype="float16", axes=("l", "c"), statistics=True,
                          valid="valid"),
                ArraySpec(name="valid", shape=shapes[kind][:1], dtype="bool", axes=("l",)),
            ]
            for level, kind in self.levels.items()
        }  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The files of the network and the tokenizer."""
        return [
            *self._hub.parts(self.name, lambda: self._network),
            WeightPart(name=f"{self.name}, tokenizer", load=lambda: self._tokenizer, fetch=self._tokenizer_hub.fetch,
                       find=lambda: None if self._tokenizer_files == [SHIPPED] else self._tokenizer_files[0]),
        ]  # fmt: skip

    def prepare(self, item: str) -> list[int]:
        """Tokenises one expression."""
        return self._tokenizer.encode(item).ids

    def encode(self, batch: Sequence[list[int]], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Computes the features of each expression; those of padding are zero, unless they are kept.

        A GPU processes all in one pass. A CPU processes expressions of one length, always `ROWS` at a time, and a pass
        in one thread: the features of an expression then have the same bytes in any company and with any number of
        threads. Repeated expressions fill up a pass.
        """
        if not batch:
            return []
        if self.setup.device != "cpu":
            return self._features(batch, levels)
        _ = self._network  # loaded before several threads need it
        found: list[dict[str, np.ndarray]] = [{} for _ in batch]
        passes = self._passes(batch)
        done = each_in_one_thread(lambda places: self._features([batch[one] for one in places], levels), passes)
        for places, computed in zip(passes, done, strict=True):
            for place, features in zip(places, computed, strict=True):
                found[place] = features
        return found

    def _passes(self, batch: Sequence[list[int]]) -> list[list[int]]:
        """The places in `batch` of the expressions of each pass on a CPU."""
        alike = defaultdict(list)
        for place, item in enumerate(batch):
            alike[self.settings.length if self.settings.keeps_padding else len(item)].append(place)
        passes = [places[start : start + ROWS] for places in alike.values() for start in range(0, len(places), ROWS)]
        return [[*places, *places[-1:] * (ROWS - len(places))] for places in passes]

    @torch.no_grad()
    def _features(self, items: Sequence[list[int]], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        length = self.settings.length if self.settings.keeps_padding else max(map(len, items))
        ids = torch.full((len(items), length), self._padding)
        lengths = torch.tensor([len(item) for item in items])
        for row, item in zip(ids, items, strict=True):
            row[: len(item)] = torch.tensor(item)
        valid = torch.arange(length) < rearrange(lengths, "b -> b 1")
        computed = self.outputs(ids.to(self.setup.device), valid.to(self.setup.device))
        found: list[dict[str, np.ndarray]] = [{} for _ in items]
        for level in levels:
            kind = self.levels[level]
            for one, features, real in zip(found, computed[kind].half().cpu().numpy(), valid.numpy(), strict=True):
                one |= {f"{level}/{name}".lstrip("/"): array
                        for name, array in self._placed(kind, features, real).items()}  # fmt: skip
        return found

    def _placed(
        self, kind: Kind, features: Float[np.ndarray, "*l c"], valid: Bool[np.ndarray, " l"]
    ) -> dict[str, np.ndarray]:
        """The arrays of one level."""
        if kind == "pooled":
            return {"features": rearrange(features, "c -> 1 c"), "valid": np.ones(1, np.bool_)}
        all_features = np.zeros((self.settings.length, features.shape[-1]), np.float16)
        all_valid = np.zeros(self.settings.length, np.bool_)
        kept = np.ones_like(valid) if self.settings.keeps_padding else valid
        all_features[: len(valid)][kept], all_valid[: len(valid)] = features[kept], valid
        return {"features": all_features, "valid": all_valid}

    def remarks(self, items: Sequence[str]) -> list[str]:
        """Names the expressions that have more tokens than fit."""
        cut = self.overlong(items)
        if not cut:
            return []
        named = [f"  {length} tokens: {text!r}" for text, length in list(cut.items())[:MOST_NAMED]]
        more = [f"  and {len(cut) - MOST_NAMED} more"] if len(cut) > MOST_NAMED else []
        return [f"{self.name}: {len(cut)} expressions have more than {self.settings.length} tokens and are truncated:",
                *named, *more]  # fmt: skip

    def num_tokens(self, text: str) -> int:
        """Number of tokens of a text before truncation, including start and end."""
        return len(self._whole.encode(text).ids)

    def overlong(self, texts: Iterable[str]) -> dict[str, int]:
        """Number of tokens of each text that will be truncated."""
        lengths = {text: self.num_tokens(text) for text in texts}
        return {text: length for text, length in lengths.items() if length > self.settings.length}

    @property
    def _source(self) -> WeightSource:
        """The user's choice, or random weights where there are no others."""
        weights = self.setup.weights
        return WeightSource(kind="random", seed=weights.seed) if self.settings.repository is None else weights

    @property
    def _hub(self) -> HubFolder:
        return HubFolder(repository=self.settings.repository or self.name, source=self._source)

    @property
    def _tokenizer_hub(self) -> HubFolder:
        return HubFolder(repository=self.settings.tokenizer or self._hub.repository, source=self._source)

    @cached_property
    def _tokenizer_files(self) -> list[Path]:
        hub = self._tokenizer_hub
        known = [] if hub.folder is None else [hub.folder / name for name in (WHOLE, *self.older_tokenizer)]
        if hub.source.kind == "random" and not any(file.is_file() for file in known):
            return [SHIPPED]
        return tokenizer_files(hub, self.older_tokenizer)

    @cached_property
    def _whole(self) -> "Tokenizer":
        fetch = self._tokenizer_hub.fetch.format(folder=self.setup.weights.folder or "DIR")
        return read_tokenizer(self._tokenizer_files, self.from_older, f", which comes by {fetch}")

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self._whole.to_str())
        tokenizer.enable_truncation(self.settings.length)
        vocabulary = self.config[self.size_names["vocabulary"]]
        if tokenizer.get_vocab_size() > vocabulary:
            raise WeightsError(
                f"tokenizer {self._tokenizer_files[0]} has {tokenizer.get_vocab_size()} tokens, the text encoder "
                f"{vocabulary}; accepted: the tokenizer.json of {self.name}"
            )
        return tokenizer

    @property
    def _padding(self) -> int:
        return self.config.get("pad_token_id") or 0
