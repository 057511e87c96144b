"""BERT: the token features of one expression in lower case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.protocol import EncoderSetup
from extract.encoders.tokens import word_pieces
from refavs.machine.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class BertEncoder(TextEncoder):
    """BERT; the first token is `[CLS]`. Its pooling layer is loaded, so that checkpoints are complete, and not run."""

    older_tokenizer: ClassVar[Sequence[str]] = ("vocab.txt",)
    tokenizer_kind = "word pieces"
    unused = (r"cls\..*", r".*\.position_ids")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """BERT's."""
        ensure_torchvision()
        from transformers.models.bert.configuration_bert import BertConfig

        return BertConfig(**values)

    def network_class(self) -> Any:
        """BERT's."""
        from transformers.models.bert.modeling_bert import BertModel

        return BertModel

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer."""
        return {"tokens": self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state}

    def from_older(self, *files: Path) -> "Tokenizer":
        """From vocab.txt."""
        return word_pieces(*files)


BASE = TextSettings(
    length=25, repository="google-bert/bert-base-uncased",
    config={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    },
)  # fmt: skip


def bert_base_uncased(setup: EncoderSetup) -> BertEncoder:
    """The base size."""
    return BertEncoder("bert-base-uncased", BASE, setup, "Apache-2.0", 109_482_240)
