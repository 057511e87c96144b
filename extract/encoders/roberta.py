"""RoBERTa and its relatives: the token features of one expression."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.protocol import EncoderSetup
from refavs.machine.torchvision_shim import ensure_torchvision


class RobertaEncoder(TextEncoder):
    """RoBERTa without its pooling layer, which checkpoints lack; the first token is `<s>`."""

    options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    unused = (r"lm_head\..*", r"(roberta\.)?pooler\..*", r".*\.position_ids")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """RoBERTa's."""
        ensure_torchvision()
        from transformers.models.roberta.configuration_roberta import RobertaConfig

        return RobertaConfig(**values)

    def network_class(self) -> Any:
        """RoBERTa's."""
        from transformers.models.roberta.modeling_roberta import RobertaModel

        return RobertaModel

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer."""
        return {"tokens": self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state}


def _config(channels: int, num_layers: int, num_heads: int, vocabulary: int = 50_265) -> dict[str, Any]:
    return {
        "hidden_size": channels, "num_hidden_layers": num_layers, "num_attention_heads": num_heads,
        "intermediate_size": 4 * channels, "vocab_size": vocabulary, "max_position_embeddings": 514,
        "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5,
    }  # fmt: skip


BASE = TextSettings(length=25, config=_config(768, 12, 12), repository="FacebookAI/roberta-base")
LARGE = TextSettings(length=25, config=_config(1024, 24, 16), repository="FacebookAI/roberta-large")
DISTILLED = TextSettings(
    length=25, config=_config(768, 6, 12), repository="distilbert/distilroberta-base", keeps_padding=True
)
TINY = TextSettings(length=16, config=_config(128, 2, 4, vocabulary=1024))


def roberta_base(setup: EncoderSetup) -> RobertaEncoder:
    """The paper's."""
    return RobertaEncoder("roberta-base", BASE, setup, "MIT", 124_055_040)


def roberta_large(setup: EncoderSetup) -> RobertaEncoder:
    """The larger one."""
    return RobertaEncoder("roberta-large", LARGE, setup, "MIT", 354_310_144)


def distilroberta_base(setup: EncoderSetup) -> RobertaEncoder:
    """That of the paper's public release, which keeps the features of padding."""
    return RobertaEncoder("distilroberta-base", DISTILLED, setup, "Apache-2.0", 81_527_808)


def tiny_roberta(setup: EncoderSetup) -> RobertaEncoder:
    """A small RoBERTa with random weights, for demonstrations."""
    return RobertaEncoder("tiny-roberta", TINY, setup, "Apache-2.0", 593_792)
