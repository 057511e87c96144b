"""Sufficient statistics of predictions, per expression and frame, from which every protocol is recomputed.

They are counted once, during inference, and do not depend on batches, order or the number of workers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from refavs.errors import StatisticsError
from refavs.metrics.boundary import boundary_counts
from refavs.metrics.registry import metrics, own_counts
from refavs.metrics.segmentation import FrameCounts, above, count_true, frames_at_once, pixel_histogram, predicted

RELEASED_SIZE = 256
VERSION = 1
EXPRESSION_COLUMNS = {
    "row": "int32", "uid": "str", "clip_id": "str", "fid": "int32", "category": "str", "split": "str", "grade": "str",
    "dimension": "str", "length": "int16", "text": "str",
}  # fmt: skip
COUNTS = (
    "target", "pred_50", "hits_50", "pred_40", "hits_40", "boundary_pred", "boundary_target", "boundary_pred_met",
    "boundary_target_met", "released_target", "released_pred_40", "released_hits_40", "released_pred_50",
)  # fmt: skip
HISTOGRAMS = ("background", "object", "released_background", "released_object")
PEAK = "max_prob"
LABELLED = "labelled"  # present only if some frame has no label
ALWAYS = ("target", "pred_50", "hits_50")  # other counts may be missing in a file
FACTS = ("version", "height", "width", "num_frames", "store")


def frame_statistics(
    probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t mh mw"]
) -> dict[str, np.ndarray]:
    """Computes the statistics of each frame, with axes `b t`; histograms have axes `b t k` (256 cells).

    At the size of the masks: `target`; `pred_50` and `hits_50` (predicted pixels, probability above 0.5, and those of
    them on the object); the same at 0.4; `background` and `object` (pixels by the number of thresholds their
    probability reaches); `max_prob` (the largest probability, i.e. how sure the model is of an object); and
    `boundary_*` (see `boundary_counts`, at 0.5). At 256 x 256, from `released_view`: `released_*`. The own counts of
    metrics are called `METRIC/COLUMN`.

    Raises:
        StatisticsError: probs hold NaN or values outside [0, 1], or the masks have another size.
    """
    if probs.shape != masks.shape:
        raise StatisticsError(f"probabilities of shape {tuple(probs.shape)} and masks of shape {tuple(masks.shape)}; "
                              "both must have the size of the store's masks")
    probs = probs.detach().float()
    _require_numbers(probs)
    size = frames_at_once(probs.device, masks.shape[-2] * masks.shape[-1], masks.shape[0] * masks.shape[1])
    flat_probs, flat_masks = (rearrange(part, "b t h w -> (b t) h w") for part in (probs, masks))
    parts = [_counted(*part) for part in zip(flat_probs.split(size), flat_masks.split(size), strict=True)]
    shape = masks.shape[:2]
    found = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return {
        name: (values if "/" in name else values.astype(np.float32 if name == PEAK else np.uint32))
        .reshape(*shape, *values.shape[1:]) for name, values in found.items()
    }  # fmt: skip


def _counted(probs: Float[Tensor, "n h w"], masks: Bool[Tensor, "n h w"]) -> dict[str, Tensor]:
    histogram = pixel_histogram(probs, masks)
    found = {f"boundary_{name}": value for name, value in boundary_counts(above(probs, 0.5), masks).items()}
    found |= own_counts(probs, masks)
    found |= {"target": histogram[:, 1].sum(-1), "background": histogram[:, 0], "object": histogram[:, 1],
              PEAK: probs.amax((-2, -1))}
    for name, threshold in (("50", 0.5), ("40", 0.4)):
        found[f"pred_{name}"], found[f"hits_{name}"] = predicted(probs, masks, threshold)
    probs, masks = released_view(probs, masks)
    histogram = pixel_histogram(probs, masks)
    found["released_pred_40"], found["released_hits_40"] = predicted(probs, masks, 0.4)
    found |= {"released_target": histogram[:, 1].sum(-1), "released_pred_50": count_true(above(probs, 0.5)),
              "released_background": histogram[:, 0], "released_object": histogram[:, 1]}
    return found


def released_view(
    probs: Float[Tensor, "n h w"], masks: Bool[Tensor, "n h w"]
) -> tuple[Float[Tensor, "n 256 256"], Bool[Tensor, "n 256 256"]]:
    """Predictions and masks at 256 x 256, resized as in the authors' code.

    Predictions: bilinear from 384 x 384, corners not aligned, no anti-aliasing. Masks: OpenCV's bilinear `resize` of 0
    and 255, rounded, then > 0; bitwise equal to OpenCV's result. Objects grow by up to a pixel, so even a perfect
    prediction does not score 1.

    Differs: the authors resize logits, this function probabilities. They resize the annotated masks, this function the
    store's masks, which were resized from those by nearest neighbour.
    """
    if tuple(probs.shape[-2:]) == (RELEASED_SIZE, RELEASED_SIZE):
        return probs, masks
    size = (RELEASED_SIZE, RELEASED_SIZE)
    small_probs, small_masks = (
        functional.interpolate(part.unsqueeze(1), size=size, mode="bilinear").squeeze(1)
        for part in (probs, masks.float())
    )
    return small_probs.clamp(0, 1), small_masks > 0.5 / 255


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics of some expressions of one run, in the order of the metadata file.

    Attributes:
        expressions: one line per expression with `EXPRESSION_COLUMNS`; `row` is its index in the store's table, which
            identifies it (uids repeat), `length` its number of words.
        frames: the available arrays of `frame_statistics` by name, and `labelled`, the frames that count, unless all
            do.
        facts: `height`, `width`, `num_frames` of the masks, the fingerprint of the `store`, `version`.
    """

    expressions: pd.DataFrame
    frames: dict[str, np.ndarray]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.expressions)

    def select(self, chosen: np.ndarray) -> "Statistics":
        """The statistics of the `chosen` expressions, given as indices or as a boolean mask."""
        return Statistics(
            expressions=self.expressions.iloc[np.arange(len(self))[chosen]].reset_index(drop=True),
            frames={name: values[chosen] for name, values in self.frames.items()},
            facts=self.facts,
        )

    def counts(self, prefix: str = "", threshold: str = "50") -> FrameCounts:
        """The counts from which scores are computed, with axes `b t`.

        Args:
            prefix: empty for the size of the masks, `released_` for 256 x 256.
            threshold: threshold of the predicted pixels in percent, `50` or `40`.
        """
        return counts_of(self.frames, self.frame_size(prefix), prefix, threshold)

    def frame_size(self, prefix: str = "") -> int:
        """Number of pixels in a frame."""
        return RELEASED_SIZE**2 if prefix else self.facts["height"] * self.facts["width"]


def counts_of(
    frames: Mapping[str, np.ndarray], num_pixels: int, prefix: str = "", threshold: str = "50"
) -> FrameCounts:
    """As `Statistics.counts`, from the arrays of `frame_statistics`."""
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(frames[name].astype(np.int64))

    sides = [f"{prefix}{name}" for name in ("background", "object")]
    labelled = frames.get(LABELLED)
    return FrameCounts(
        num_pixels=num_pixels, target=tensor(f"{prefix}target"), pred=tensor(f"{prefix}pred_{threshold}"),
        hits=tensor(f"{prefix}hits_{threshold}"),
        histogram=torch.stack([*map(tensor, sides)], dim=2) if set(sides) <= set(frames) else None,
        labelled=None if labelled is None else torch.from_numpy(labelled),
        own={name: torch.from_numpy(values) for name, values in frames.items() if "/" in name},
    )  # fmt: skip


def own_columns() -> tuple[str, ...]:
    """The columns of the own counts of installed metrics."""
    return tuple(column for metric in metrics().values() for column in metric.own)


def concat(parts: Iterable[Statistics]) -> Statistics:
    """Joins the statistics of all parts, in any order, as if one process had counted them.

    A count that is missing in one of the parts is left out.

    Raises:
        StatisticsError: there are no parts, or they have different stores or sizes or share an expression.
    """
    found = list(parts)
    if not found:
        raise StatisticsError("there are no statistics to join; expected those of at least one worker")
    for part in found[1:]:
        for name in FACTS:
            if part.facts[name] != found[0].facts[name]:
                raise StatisticsError(f"statistics with {name} {found[0].facts[name]} and {part.facts[name]} cannot "
                                      "belong to one run; pass parts of one store and size")
    expressions = pd.concat([part.expressions for part in found], ignore_index=True)
    order = np.argsort(expressions["row"].to_numpy(), kind="stable")
    expressions = expressions.iloc[order].reset_index(drop=True)
    twice = expressions["row"].duplicated()
    if twice.any():
        uid = expressions["uid"][twice.idxmax()]
        raise StatisticsError(f"{int(twice.sum())} expressions occur in two parts, e.g. {uid!r}; pass each part once")
    frames = {name: values[order] for name, values in _joined([part.frames for part in found]).items()}
    return Statistics(expressions=expressions, frames=frames, facts=found[0].facts)


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the arrays that all parts have; `labelled` is True for a part without it."""
    if any(LABELLED in part for part in parts):
        parts = [{LABELLED: np.ones(part["target"].shape, bool), **part} for part in parts]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in shared}


@dataclass(kw_only=True)
class Recorder:
    """Collects the statistics of an inference, batch by batch.

    Attributes:
        table: the store's expressions; `row` is the index in this table.
        store: the store's fingerprint.
    """

    table: pd.DataFrame
    store: str
    _rows: list[int] = field(default_factory=list)
    _parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    _size: tuple[int, ...] = ()

    def add(
        self, rows: Sequence[int], probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t mh mw"],
        labelled: Bool[Tensor, "b t"] | None = None,
    ) -> FrameCounts:
        """Adds a batch, the expressions `rows` of the table, and returns its counts at the threshold 0.5.

        Args:
            labelled: the frames that count; None means all.

        Raises:
            StatisticsError: probs hold NaN, or the masks have another size; the message names the expression.
        """
        uids = self.table["uid"].iloc[list(rows)].tolist()
        try:
            part = frame_statistics(probs, masks)
        except StatisticsError as error:
            right = ((probs >= 0) & (probs <= 1)).flatten(1).all(1).tolist()
            wrong = [uid for uid, fine in zip(uids, right, strict=True) if not fine] or uids
            raise StatisticsError(f"predictions of {', '.join(wrong)}: {error}") from error
        if labelled is not None and not labelled.all():
            part[LABELLED] = labelled.cpu().numpy()
        size = tuple(masks.shape[1:])
        if self._size and size != self._size:
            raise StatisticsError(f"masks of {uids[0]!r} are {size}, earlier ones "
                                  f"{self._size} (frames, height, width); all masks of a run must have the same size")
        self._size = size
        self._rows += [int(row) for row in rows]
        self._parts.append(part)
        return counts_of(part, size[1] * size[2])

    def statistics(self) -> Statistics:
        """Everything added so far, in the order of the table.

        Raises:
            StatisticsError: nothing was added, or an expression was added twice.
        """
        if not self._parts:
            raise StatisticsError("no expression was evaluated; choose splits that the store has with masks")
        num_frames, height, width = self._size
        facts = {"version": VERSION, "height": height, "width": width, "num_frames": num_frames, "store": self.store}
        expressions = describe(self.table, self._rows)
        return concat([Statistics(expressions=expressions, frames=_joined(self._parts), facts=facts)])


def describe(table: pd.DataFrame, rows: Sequence[int]) -> pd.DataFrame:
    """The `EXPRESSION_COLUMNS` of expressions; the category is the object's name in the uid."""
    chosen = table.iloc[list(rows)].reset_index(drop=True)
    given: Mapping[str, Any] = {
        "row": np.asarray(rows),
        "category": [_category(uid) for uid in chosen["uid"]],
        "length": [len(text.split()) for text in chosen["text"]],
    }
    columns = {
        name: given[name] if name in given else chosen.get(name, "") for name in EXPRESSION_COLUMNS
    }
    frame = pd.DataFrame(columns, index=chosen.index)
    return frame.astype({name: kind for name, kind in EXPRESSION_COLUMNS.items()})


def _category(uid: str) -> str:
    parts = uid.rsplit("_", 2)
    return parts[1] if len(parts) == 3 else ""


def _require_numbers(probs: Float[Tensor, "b t h w"]) -> None:
    low, high = torch.aminmax(probs) if probs.numel() else (torch.zeros(()), torch.zeros(()))
    if not (low >= 0 and high <= 1):
        raise StatisticsError(f"probabilities from {float(low)} to {float(high)}; accepted: numbers in [0, 1]; the "
                              "model has diverged, train it again with a lower train.learning_rate")


