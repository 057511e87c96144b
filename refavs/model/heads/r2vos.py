"""R2VOS: ReferFormer's queries, and a sentence that is guessed from the pixels and says whether the expression fits."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.baseline_masks import mean_of_frames
from refavs.model.heads.parts.box_decoder import perceptron
from refavs.model.heads.parts.clip_matching import LOSSES
from refavs.model.heads.parts.clip_queries import ClipOutput, ClipQueryHead, start_evenly
from refavs.model.heads.parts.dual_pyramid import DualPyramid
from refavs.model.heads.parts.expression_input import ReadExpression, Words
from refavs.model.heads.parts.rvos_options import R2VOSOptions
from refavs.model.heads.protocol import ChosenSteps
from refavs.model.options import LossConfig
from refavs.model.target import Target

MARGIN = 0.5  # a guessed sentence should be so far from an expression that does not fit
TINY = 1e-12


@dataclass
class Pairs:
    """Expressions and the sentences guessed for them; a positive logit says that the expression does not fit."""

    sentences: Float[Tensor, "b c"]
    guessed: Float[Tensor, "b c"]
    logits: Float[Tensor, "b"]

    @property
    def distances(self) -> Float[Tensor, "b"]:
        """The distance of each guess from its expression."""
        return nn.functional.pairwise_distance(self.guessed, self.sentences)


@dataclass
class R2VOSOutput(ClipOutput):
    """Predictions, and what the losses of the sentences compare.

    Attributes:
        pairs: of each expression and its clip.
        others: of another expression of the batch and the same clip; None where nothing is learned from them.
    """

    pairs: Pairs
    others: Pairs | None


class R2VOS(ClipQueryHead):
    """Follows R2VOS (arXiv 2207.01203) and its release.

    Differs: as `ReferFormer`; expressions that do not fit are by default those without an object (see `R2VOSOptions`).
    """

    losses: ClassVar[tuple[str, ...]] = (*LOSSES, "pairs", "contrast", "relation")

    def __init__(self, options: R2VOSOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width = options.channels
        self.pyramid = DualPyramid(
            (sizes.maps[0].channels, *(width,) * 3), width, options.num_heads, options.feedforward_channels,
            options.dropout,
        )  # fmt: skip
        self.mixing = nn.Sequential(nn.Linear(2 * width, width), nn.LayerNorm(width))
        self.judge = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), perceptron(width, 1)[2:])
        for part in (self.pyramid.block, self.pyramid.sentence.layers):
            start_evenly(part)

    def parts(self) -> dict[str, nn.Module]:
        return {"masks": self.masks, "pixel decoder": self.pyramid, "decoder": self.decoder, "encoder": self}

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> R2VOSOutput:
        """The chosen steps are decoded; see `clip` for those that are read."""
        expression = self.expression(batch)
        encoded = self.encoded(batch, expression.words, steps, once)
        features, guessed = self.pyramid(encoded.levels, expression.words)
        repeated = rearrange(guessed, "b c -> b 1 c").expand_as(expression.sentence)
        content = expression.sentence + self.mixing(torch.cat([expression.sentence, repeated], dim=-1))
        found = self.predicted(content, encoded, features, steps)
        others = None
        if self.options.choice("negatives") == "batch" and self.training and len(batch) > 1:
            others = self._others(batch, expression, steps, once)
        return R2VOSOutput(found.layers, found.scores, self._pairs(expression.sentence, guessed), others)

    def loss(self, output: Any, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Losses of the matched query and of the sentences."""
        found = super().loss(output, target, weights)
        labelled = torch.ones_like(target.masks[:, :, 0, 0]) if target.labelled is None else target.labelled
        fits = (target.masks.flatten(2).any(dim=2) & labelled).any(dim=1)
        pairs, contrast, relation = self._of_sentences(output, fits, target)
        total = found["total"] + self.options.pair_weight * pairs + self.options.contrast_weight * contrast
        total = total + self.options.choice("relation_weight") * relation
        parts = {"pairs": pairs, "contrast": contrast, "relation": relation}
        return {**found, "total": total, **{name: part.detach() for name, part in parts.items()}}

    def probs(self, output: Any, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The masks of the best query, which are empty where the expression is judged not to fit."""
        fits = rearrange(output.pairs.logits < 0, "b -> b 1 1 1")
        return torch.where(fits, super().probs(output, size), 0.0)

    def _of_sentences(
        self, output: R2VOSOutput, fits: Bool[Tensor, "b"], target: Target
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Losses of the judgement, of the distance of what does not fit, and of the distances among the sentences."""
        pairs, others = output.pairs, output.others

        def mean(of_expression: Float[Tensor, "b"]) -> Float[Tensor, ""]:
            # By labelled frames, so that the losses of parts of a batch add up.
            return mean_of_frames(rearrange(of_expression, "b -> b 1").expand(target.masks.shape[:2]), target)

        entropy = nn.functional.binary_cross_entropy_with_logits
        relation = relation_of(pairs, fits) if self.options.choice("relation_weight") else pairs.logits.new_zeros(())
        if self.options.choice("negatives") == "null":
            judged = mean(entropy(pairs.logits, (~fits).float(), reduction="none"))
            return judged, mean((MARGIN - pairs.distances).clamp(min=0) * ~fits), relation
        judged = entropy(pairs.logits, torch.zeros_like(pairs.logits), reduction="none")
        if others is None:
            return mean(judged * fits), judged.new_zeros(()), relation
        judged = judged + entropy(others.logits, torch.ones_like(others.logits), reduction="none")
        return mean(judged / 2 * fits), mean((MARGIN - others.distances).clamp(min=0) * fits), relation

    def _others(
        self, batch: Batch, expression: ReadExpression, steps: ChosenSteps | None, once: Once | None
    ) -> Pairs:
        """The pairs of each clip with the expression before it in the batch."""
        words = Words(*(part.roll(1, dims=0) for part in expression.words))
        encoded = self.encoded(batch, words, steps, once)
        return self._pairs(expression.sentence.roll(1, dims=0), self.pyramid.guess(encoded.levels[-1], words))

    def _pairs(self, sentence: Float[Tensor, "b t c"], guessed: Float[Tensor, "b c"]) -> Pairs:
        sentence = sentence.mean(dim=1)
        logits = self.judge(torch.cat([sentence, guessed], dim=-1))
        return Pairs(sentence.float(), guessed.float(), rearrange(logits, "b 1 -> b").float())


def relation_of(pairs: Pairs, fits: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """How far the distances and angles among the guesses are from those among the expressions (arXiv 1904.05068).

    Zero where fewer than two expressions fit; the release has no finite value there.
    """
    if int(fits.sum()) < 2:
        return pairs.guessed.new_zeros(())
    guessed, true = pairs.guessed[fits], pairs.sentences[fits].detach()
    compared: list[tuple[Any, Any]] = []
    for of in (_relative_distances, _cosines):
        compared.append((of(guessed), of(true)))
    parts = [nn.functional.smooth_l1_loss(*pair) for pair in compared]
    return parts[0] + parts[1]


def _relative_distances(sentences: Float[Tensor, "n c"]) -> Float[Tensor, "n n"]:
    apart = sentences[:, None] - sentences[None]
    distance = apart.square().sum(dim=-1).clamp(min=TINY).sqrt()
    distance = distance * ~torch.eye(len(sentences), dtype=torch.bool, device=sentences.device)
    return distance / (distance.sum() / (distance > 0).sum())


def _cosines(sentences: Float[Tensor, "n c"]) -> Float[Tensor, "n n n"]:
    """The cosine of the angle at each sentence between the directions of two others."""
    directions = nn.functional.normalize(sentences[None] - sentences[:, None], dim=-1)
    return torch.einsum("nic,njc->nij", directions, directions)
