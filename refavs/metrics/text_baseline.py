"""Text-only baseline: predicts from the sentence alone whether an expression refers to nothing.

In Ref-AVS Bench the eight sentences of the Null split occur in training almost only with empty masks, so a look-up
reaches S = 0. Three of them differ from sentences of other rows only by the full stop at the end, which the null rows
lack. A head's S therefore says something about sound only in comparison with this baseline.
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
    """Predicts from its words whether an expression has an empty mask.

    A sentence that occurs verbatim in training gets the majority label there (a tie is not empty). Any other sentence
    is classified by naive Bayes over its distinct lower-case words and punctuation marks, with add-one smoothing.

    Attributes:
        known: the label of each training sentence.
        log_odds: log odds of each training word, for empty against not empty.
        prior: log odds of empty without any word; -inf if training has no empty expression.
    """

    known: dict[str, bool]
    log_odds: dict[str, float]
    prior: float

    @classmethod
    def fit(cls, texts: Sequence[str], empty: Sequence[bool]) -> "TextControl":
        """Fits to the training expressions; `empty` is True for those without an object in any frame."""
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
        """Whether each sentence is predicted to refer to nothing."""
        return array([self._empty(text) for text in texts], bool)

    def _empty(self, text: str) -> bool:
        if text in self.known:
            return self.known[text]
        return self.prior + sum(self.log_odds.get(word, 0.0) for word in sorted(words_of(text))) > 0


def words_of(text: str) -> set[str]:
    """The distinct words and punctuation marks of a sentence, in lower case."""
    return set(re.findall(r"\w+|[^\w\s]", text.casefold()))
