"""The encoders of Flan-T5: token features of one expression, its end `</s>` included, and their mean."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.tokens import sentence_pieces
from refavs.choices import Precision


class FlanT5Encoder(TextEncoder):
    """T5's encoder has no token that stands for the whole, so the vector is the mean of all tokens.

    Its feed-forward layers overflow in fp16, so it computes in bf16 where anything but fp32 is asked for.
    """

    config_name = "t5.configuration_t5.T5Config"
    network_name = "t5.modeling_t5.T5EncoderModel"
    levels: ClassVar[Mapping[str, Kind]] = {"tokens": "tokens", "pooled": "pooled"}
    size_names: ClassVar[Mapping[str, str]] = {
        "channels": "d_model", "num_layers": "num_layers", "num_heads": "num_heads", "feedforward_channels": "d_ff",
        "vocabulary": "vocab_size",
    }  # fmt: skip
    pooled_name = "d_model"
    pooling = "mean of all tokens"
    older_tokenizer: ClassVar[Sequence[str]] = ("spiece.model",)
    from_older = staticmethod(sentence_pieces)
    tokenizer_kind = "sentence pieces"
    unused = (r"decoder\..*", r"lm_head\..*", r"encoder\.embed_tokens\..*")

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer, and their mean over what is no padding."""
        tokens = self._network(input_ids=ids, attention_mask=valid.long()).last_hidden_state.float()
        real = rearrange(valid, "b l -> b l 1").float()
        mean = reduce(tokens * real, "b l c -> b c", "sum") / reduce(real, "b l 1 -> b 1", "sum")
        return {"tokens": tokens, "pooled": mean}

    @property
    def precision(self) -> Precision:
        """fp32 or bf16."""
        return "fp32" if self.setup.precision == "fp32" else "bf16"


def _settings(size: str, channels: int, feedforward: int, num_layers: int, num_heads: int) -> TextSettings:
    return TextSettings(length=25, repository=f"google/flan-t5-{size}", config={
        "d_model": channels, "d_kv": 64, "d_ff": feedforward, "num_layers": num_layers, "num_heads": num_heads,
        "vocab_size": 32_128, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": False,
    })  # fmt: skip



def _of_size(size: str, num_parameters: int, *sizes: int) -> partial[FlanT5Encoder]:
    settings = _settings(size, *sizes)
    return partial(FlanT5Encoder, f"flan-t5-{size}", settings, licence="Apache-2.0", num_parameters=num_parameters)


# The paper's supplement, Table 3, gives no size; likely it is the base one.
flan_t5_small = _of_size("small", 35_332_800, 512, 1024, 8, 6)
flan_t5_base = _of_size("base", 109_628_544, 768, 2048, 12, 12)
flan_t5_large = _of_size("large", 341_231_104, 1024, 2816, 24, 16)
flan_t5_xl = _of_size("xl", 1_223_527_424, 2048, 5120, 24, 32)
