"""RoBERTa and its relatives: the token features of one expression."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings


class RobertaEncoder(TextEncoder):
    """RoBERTa without its pooling layer, which checkpoints lack; the first token is `<s>`."""

    config_name = "roberta.configuration_roberta.RobertaConfig"
    network_name = "roberta.modeling_roberta.RobertaModel"
    options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    unused = (r"lm_head\..*", r"(roberta\.)?pooler\..*", r".*\.position_ids")

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

# The paper's, the larger one, that of the paper's public release, which keeps the features of padding, and a small one
# with random weights for demonstrations.
roberta_base = partial(RobertaEncoder, "roberta-base", BASE, num_parameters=124_055_040)
roberta_large = partial(RobertaEncoder, "roberta-large", LARGE, num_parameters=354_310_144)
distilroberta_base = partial(
    RobertaEncoder, "distilroberta-base", DISTILLED, licence="Apache-2.0", num_parameters=81_527_808
)
tiny_roberta = partial(RobertaEncoder, "tiny-roberta", TINY, licence="Apache-2.0", num_parameters=593_792)
