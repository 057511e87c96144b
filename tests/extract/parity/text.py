"""Text encoders against transformers' own classes, at small sizes: each dimension differs from every other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extract.encoders.hub_text import TextEncoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.tokenizer import train_tokenizer
from extract.encoders.weights import WeightSource
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise

TEXTS = ("The object that sounds before the star.", "The loudest one, is it?", "It")
CUT: Any = {"truncation": True, "max_length": 25, "return_tensors": "pt"}
ROBERTA: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 420,
}  # fmt: skip
CLIP: dict[str, Any] = {**ROBERTA, "hidden_size": 40, "num_attention_heads": 5, "vocab_size": 620}


def _hub(encoder: TextEncoder, folder: Path, tokenizer: bool = False) -> Path:
    repository = (tokenizer and encoder.settings.tokenizer) or encoder.settings.repository
    assert repository is not None
    found = folder / repository.rsplit("/", 1)[-1]
    found.mkdir(exist_ok=True)
    return found


def _encoder(name: str, folder: Path) -> Any:
    return make_encoder(name, EncoderSetup(weights=WeightSource(folder=folder)))


def _saved(model: nn.Module, folder: Path, gain: float = 1.0) -> Any:
    randomise(model, 0, gain)
    model.eval().save_pretrained(folder)  # pyright: ignore
    return model


def _worst(encoder: TextEncoder, reference: Callable[[str], dict[str, Tensor]]) -> float:
    """Over the texts and the kinds of features; also checks what is stored of them."""
    worst = 0.0
    for text in TEXTS:
        prepared = encoder.prepare(text)
        ids = torch.tensor([prepared])
        with torch.no_grad():
            expected = reference(text)
            found = encoder.outputs(ids, torch.ones_like(ids, dtype=torch.bool))
        (stored,) = encoder.encode([prepared], list(encoder.levels))
        for level, kind in encoder.levels.items():
            want, got = expected[kind][0], found[kind][0]
            assert want.shape == got.shape, f"{encoder.name} has other tokens than its reference"
            worst = max(worst, ((got - want).abs().max() / want.abs().max()).item())
            kept = torch.from_numpy(stored[f"{level}/features".lstrip("/")])[: 1 if kind == "pooled" else len(want)]
            assert (kept.float() - want).abs().max() <= 1e-3 * want.abs().max()
    return worst


def _byte_level(folder: Path) -> None:
    train_tokenizer(TEXTS, 400).save(str(folder / "tokenizer.json"))


def _roberta(name: str) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        ensure_torchvision()
        from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel, RobertaTokenizer

        hub = _hub(_encoder(name, folder), folder)
        _saved(RobertaForMaskedLM(RobertaConfig(**ROBERTA, max_position_embeddings=90, type_vocab_size=1)), hub)
        _byte_level(hub)
        encoder = _encoder(name, folder)
        theirs = RobertaModel.from_pretrained(hub, add_pooling_layer=False).eval()
        tokenizer = RobertaTokenizer.from_pretrained(hub)
        return _worst(encoder, lambda text: {"tokens": theirs(**tokenizer(text, return_tensors="pt"))[0]})

    return run


def _bert(folder: Path) -> float:
    ensure_torchvision()
    from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer

    hub = _hub(_encoder("bert-base-uncased", folder), folder)
    model: Any = BertForMaskedLM(BertConfig(**ROBERTA))
    model.bert = BertModel(model.config)  # checkpoints have the pooling layer
    _saved(model, hub)
    words = sorted({*"".join(TEXTS).lower()} | {f"##{letter}" for letter in "".join(TEXTS).lower()} | {"the", "##ect"})
    (hub / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    theirs, tokenizer = BertModel.from_pretrained(hub).eval(), BertTokenizer(str(hub / "vocab.txt"))
    encoder = _encoder("bert-base-uncased", folder)
    return _worst(encoder, lambda text: {"tokens": theirs(**tokenizer(text, **CUT))[0]})


def write_pieces(file: Path) -> list[tuple[str, float]]:
    """A sentencepiece model of the letters of `TEXTS` and a few longer pieces, as T5's is; returns the pieces."""
    ensure_torchvision()
    from transformers.convert_slow_tokenizer import import_protobuf

    content: Any = import_protobuf().ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    letters = sorted({*"".join(TEXTS)} - {" "})
    known = [("<pad>", 3), ("</s>", 3), ("<unk>", 2), *((piece, 1) for piece in ("▁", "▁the", "▁The", "ob", *letters))]
    for rank, (text, kind) in enumerate(known):
        piece = content.pieces.add()
        piece.piece, piece.score, piece.type = text, -float(rank), kind
    content.trainer_spec.model_type = 1
    file.write_bytes(content.SerializeToString())
    return [(piece.piece, piece.score) for piece in content.pieces]


def _flan_t5(name: str) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        ensure_torchvision()
        from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

        hub = _hub(_encoder(name, folder), folder)
        sizes: Any = {
            "d_model": 40, "d_kv": 6, "d_ff": 72, "num_layers": 3, "num_heads": 5, "vocab_size": 420,
            "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
        }  # fmt: skip
        config = T5Config(**sizes)
        _saved(T5ForConditionalGeneration(config), hub, gain=0.6)
        tokenizer = T5Tokenizer(vocab=write_pieces(hub / "spiece.model"), extra_ids=0)
        theirs = T5EncoderModel.from_pretrained(hub).eval()

        def reference(text: str) -> dict[str, Tensor]:
            tokens = theirs(**tokenizer(text, **CUT)).last_hidden_state
            return {"tokens": tokens, "pooled": tokens.mean(1)}

        return _worst(_encoder(name, folder), reference)

    return run


def _clip(name: str, eos_token_id: int | None = None) -> Callable[[Path], float]:
    """With the id of the end that CLIP's first configs have, or with the true one."""

    def run(folder: Path) -> float:
        ensure_torchvision()
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        hub, tokens = (_hub(_encoder(name, folder), folder, tokenizer) for tokenizer in (False, True))
        alphabet = train_tokenizer([], 300)  # bytes
        letters = [token for token in alphabet.get_vocab() if len(token) == 1]
        words = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>", "<|startoftext|>",
                 "<|endoftext|>"]  # fmt: skip
        vocabulary = {word: number for number, word in enumerate(words)}
        (tokens / "vocab.json").write_text(json.dumps(vocabulary))
        (tokens / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
        end = vocabulary["<|endoftext|>"]
        text = {**CLIP, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "bos_token_id": end - 1,
                "eos_token_id": end if eos_token_id is None else eos_token_id, "projection_dim": 28}  # fmt: skip
        vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                  "image_size": 8, "patch_size": 4}  # fmt: skip
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=28)
        theirs = _saved(CLIPModel(config), hub)
        tokenizer = CLIPTokenizer.from_pretrained(tokens)

        def reference(text: str) -> dict[str, Tensor]:
            inputs = tokenizer(text, padding="max_length", max_length=20, return_tensors="pt")
            found = theirs.get_text_features(**inputs)
            return {"tokens": found.last_hidden_state[:, : inputs["attention_mask"].sum()],
                    "pooled": found.pooler_output}  # fmt: skip

        return _worst(_encoder(name, folder), reference)

    return run


def _clap(folder: Path) -> float:
    ensure_torchvision()
    from transformers import ClapConfig, ClapModel, RobertaTokenizer

    hub = _hub(_encoder("clap-text-unfused", folder), folder)
    audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1, 1, 1], "num_attention_heads": [2, 2, 2, 2],
             "hidden_size": 64}  # fmt: skip
    text = {**ROBERTA, "max_position_embeddings": 90}
    theirs = _saved(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=28)), hub)
    _byte_level(hub)
    tokenizer = RobertaTokenizer.from_pretrained(hub)
    return _worst(
        _encoder("clap-text-unfused", folder),
        lambda text: {"pooled": theirs.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output},
    )


CASES: dict[str, Callable[[Path], float]] = {
    **{name: _roberta(name) for name in ("roberta-base", "roberta-large", "distilroberta-base")},
    "bert-base-uncased": _bert,
    **{f"flan-t5-{size}": _flan_t5(f"flan-t5-{size}") for size in ("small", "base", "large", "xl")},
    "clip-text-base-patch32": _clip("clip-text-base-patch32", eos_token_id=2),
    "clip-text-large-patch14": _clip("clip-text-large-patch14"),
    "languagebind-text": _clip("languagebind-text"),
    "clap-text-unfused": _clap,
}
