"""Trains the byte-level tokenizer that ships with the package, of RoBERTa's kind, on the synthetic expressions.

`python -m extract.encoders.tokenizer` creates it again.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.encoders.roberta import TINY
from extract.encoders.tokens import SHIPPED
from refavs.expressions.templates import TEMPLATES, sentences
from refavs.synthetic.scene import CATEGORIES
from refavs.terminal.command import CommandParser, run_command
from refavs.terminal.printing import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "Tokenizer":
    """Trains a byte-level BPE tokenizer with RoBERTa's special tokens, which can encode any string.

    Args:
        texts: expressions to learn merges from.
        vocabulary: maximum number of tokens, including bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=list(ends.items()))
    return tokenizer


def synthetic_sentences() -> list[str]:
    """Every sentence that the synthetic benchmark can hold, sorted."""
    return sorted({text for template in TEMPLATES for text in sentences(template, CATEGORIES)})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m extract.encoders.tokenizer`; returns the exit status."""
    parser = CommandParser(prog="python -m extract.encoders.tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="file to write")
    args = parser.parse_args(argv)

    def command() -> int:
        texts = synthetic_sentences()
        tokenizer = train_tokenizer(texts, TINY.config["vocab_size"])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(args.out), pretty=False)
        longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        say(f"wrote {args.out}: {tokenizer.get_vocab_size()} tokens; {len(texts)} sentences of at most {longest}")
        return 0

    return run_command("extract.encoders.tokenizer", command)


if __name__ == "__main__":
    sys.exit(main())
