"""Tokenizers of text encoders, from `tokenizer.json` or from the files that older repositories have instead."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.encoders.hub_folder import HubFolder
from extract.encoders.networks import of_transformers
from refavs.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHOLE = "tokenizer.json"
# Of this package: for encoders without pretrained weights, and for random weights without a folder of files.
SHIPPED = Path(__file__).parents[1] / "presets" / "tiny" / WHOLE


def tokenizer_files(hub: HubFolder, older: Sequence[str]) -> list[Path]:
    """The tokenizer files of a repository: `tokenizer.json`, or all of the `older` files if it is missing.

    Raises:
        NotFetched: a run would download them.
        WeightsError: the repository has none of them.
    """
    first = hub.file(WHOLE, *older[:1])
    return [first] if first.name == WHOLE else [first, *(hub.file(name) for name in older[1:])]


def read_tokenizer(
    files: Sequence[Path], from_older: "Callable[..., Tokenizer] | None" = None, advice: str = ""
) -> "Tokenizer":
    """Loads a tokenizer, without truncation or padding.

    Args:
        files: as `tokenizer_files` gives them.
        from_older: makes the tokenizer of the older files, given their paths.
        advice: what to do where they cannot be read.

    Raises:
        WeightsError: the files are not a tokenizer's.
    """
    from tokenizers import Tokenizer

    try:
        if from_older is None or files[0].name == WHOLE:
            tokenizer = Tokenizer.from_file(str(files[0]))
        else:
            tokenizer = from_older(*files)
    except Exception as error:  # the library raises nothing more specific
        raise WeightsError(f"tokenizer {files[0]} cannot be read ({error}); accepted: the tokenizer.json of this "
                           f"encoder{advice}") from error  # fmt: skip
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def byte_level(vocabulary: Path, merges: Path) -> "Tokenizer":
    """RoBERTa's, from vocab.json and merges.txt."""
    kind = of_transformers("roberta.tokenization_roberta.RobertaTokenizer")
    return kind(vocab=str(vocabulary), merges=str(merges)).backend_tokenizer


def clip_bpe(vocabulary: Path, merges: Path) -> "Tokenizer":
    """CLIP's, from vocab.json and merges.txt."""
    kind = of_transformers("clip.tokenization_clip.CLIPTokenizer")
    return kind(vocab=str(vocabulary), merges=str(merges)).backend_tokenizer


def word_pieces(vocabulary: Path) -> "Tokenizer":
    """BERT's lower-case one, from vocab.txt."""
    kind = of_transformers("bert.tokenization_bert.BertTokenizer")
    return kind(vocab=str(vocabulary)).backend_tokenizer


def sentence_pieces(model: Path) -> "Tokenizer":
    """T5's, from spiece.model; needs protobuf, but not the package sentencepiece."""
    kind = of_transformers("t5.tokenization_t5.T5Tokenizer")
    from transformers.convert_slow_tokenizer import import_protobuf

    content: Any = import_protobuf().ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    content.ParseFromString(model.read_bytes())
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    pieces = [(piece.piece, piece.score) for piece in content.pieces]
    rules = content.normalizer_spec.precompiled_charsmap or None
    return kind(vocab=[*pieces, *extra], _spm_precompiled_charsmap=rules).backend_tokenizer
