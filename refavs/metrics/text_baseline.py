"""What the sentence alone gives away: whether an expression refers to nothing, without looking or listening.

In Ref-AVS Bench the eight sentences of the Null split occur in training almost only with empty masks, so that a look-up
reaches S = 0. Three of them have twins of other rows that differ in nothing but a full stop at the end, which the null
rows lack. A head's S says something about sound only beside this control.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from numpy import array, ndarray

TEXT_ONLY = "text only"


@dataclass(frozen=True, kw_only=True)
class TextControl:
    """Says from its words whether an expression has an empty mask.

    A sentence that training has, letter by letter, is decided by its majority there (a tie is not empty). Any other is
    decided by naive Bayes over the words and punctuation marks it has, in lower case and each counted once, with one
    imagined sentence of each kind with and without each of them.

    Attributes:
        known: the decision for each sentence of training.
        log_odds: of each word of training, for empty against not.
        prior: log odds of empty without any word; -inf where training has no empty expression.
    """

    known: dict[str, bool]
    log_odds: dict[str, float]
    prior: float

    @classmethod
    def fit(cls, texts: Sequence[str], empty: Sequence[bool]) -> "TextControl":
        """Learns from the training expressions, where `empty` says which have no object in any frame."""
        votes: Counter[str] = Counter()
        words: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        totals: Counter[bool] = Counter()
        for text, nothing in zip(texts, empty, strict=True):
            votes[text] += 1 if nothing else -1
            words[bool(nothing)].update(words_of(text))
            totals[bool(nothing)] += 1
        odds = {
            word: math.log((words[True][word] + 1) / (totals[True] + 2))
            - math.log((words[False][word] + 1) / (totals[False] + 2))
            for word in sorted({*words[True], *words[False]})
        }
        prior = math.log((totals[True] + 1) / (totals[False] + 1)) if totals[True] else -math.inf
        return cls(known={text: vote > 0 for text, vote in votes.items()}, log_odds=odds, prior=prior)

    def predict(self, texts: Sequence[str]) -> Bool[ndarray, " n"]:
        """True where the sentence alone says that there is nothing."""
        return array([self._empty(text) for text in texts], bool)

    def _empty(self, text: str) -> bool:
        if text in self.known:
            return self.known[text]
        return self.prior + sum(self.log_odds.get(word, 0.0) for word in sorted(words_of(text))) > 0


def words_of(text: str) -> set[str]:
    """The distinct words and punctuation marks of a sentence, in lower case."""
    return set(re.findall(r"\w+|[^\w\s]", text.casefold()))
