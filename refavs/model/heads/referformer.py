"""ReferFormer: the expression gives the queries, and the best query follows the object through the clip."""

from torch import nn

from refavs.data.batches import Batch
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.clip_queries import ClipOutput, ClipQueryHead, start_evenly
from refavs.model.heads.parts.language_pyramid import LanguagePyramid
from refavs.model.heads.parts.rvos_options import ReferFormerOptions
from refavs.model.heads.protocol import ChosenSteps


class ReferFormer(ClipQueryHead):
    """Follows ReferFormer (arXiv 2201.00487) and its release.

    Differs: the features are frozen and standardised; the sentence is the mean of the words; the sound is added to both
    (see `ExpressionInput`); by default expressions without an object are learned, and masks of a low score are empty
    (see `ClipQueryOptions`).
    """

    def __init__(self, options: ReferFormerOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width = options.channels
        self.pyramid = LanguagePyramid(
            (sizes.maps[0].channels, *(width,) * 3), width, options.num_heads, options.feedforward_channels,
            options.dropout,
        )  # fmt: skip
        start_evenly(self.pyramid.blocks)

    def parts(self) -> dict[str, nn.Module]:
        return {"masks": self.masks, "pixel decoder": self.pyramid, "decoder": self.decoder, "encoder": self}

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> ClipOutput:
        """The chosen steps are decoded; see `clip` for those that are read."""
        expression = self.expression(batch)
        encoded = self.encoded(batch, expression.words, steps, once)
        features = self.pyramid(encoded.levels, expression.words)
        return self.predicted(expression.sentence, encoded, features, steps)
