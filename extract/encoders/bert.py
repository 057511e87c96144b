"""BERT: the token features of one expression in lower case."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.tokens import word_pieces


class BertEncoder(TextEncoder):
    """BERT; the first token is `[CLS]`. Its pooling layer is loaded, so that checkpoints are complete, and not run."""

    config_name = "bert.configuration_bert.BertConfig"
    network_name = "bert.modeling_bert.BertModel"
    older_tokenizer: ClassVar[Sequence[str]] = ("vocab.txt",)
    from_older = staticmethod(word_pieces)
    tokenizer_kind = "word pieces"
    unused = (r"cls\..*", r".*\.position_ids")

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer."""
        return {"tokens": self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state}


BASE = TextSettings(
    length=25, repository="google-bert/bert-base-uncased",
    config={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    },
)  # fmt: skip

bert_base_uncased = partial(
    BertEncoder, "bert-base-uncased", BASE, licence="Apache-2.0", num_parameters=109_482_240
)
