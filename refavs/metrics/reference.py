"""Computes every published protocol from the statistics of one inference.

Numbers of different protocols are not comparable, so always name the protocol. `canonical` has every metric of the
table in `registry`; the others use the formulas of publications for J, F and S.

| protocol         | size      | J at | F                                  | S                 | mean over        |
|------------------|-----------|------|------------------------------------|-------------------|------------------|
| `canonical`      | masks     | 0.5  | maximum of an expression           | of an expression  | expressions      |
| `released`       | 256 x 256 | 0.4  | maximum of a batch of 4 clips      | of a batch        | batches          |
| `per_frame`      | masks     | 0.5  | maximum of a frame                 | of a frame        | frames           |
| `per_expression` | masks     | 0.4  | maximum of an expression           | of an expression  | expressions      |
| `davis`          | masks     | 0.5  | of the contours, no maximum        | none              | expressions      |
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refavs.config import nearest
from refavs.errors import ConfigError, StatisticsError
from refavs.metrics.frame_counts import COUNTS, HISTOGRAMS, LABELLED, Statistics
from refavs.metrics.registry import metrics
from refavs.metrics.segmentation import FrameCounts, jaccard_per_frame

BATCH_CLIPS = 4
EPSILON = 1e-7  # in the authors' J
BOUNDARY = tuple(f"boundary_{name}" for name in ("pred", "target", "pred_met", "target_met"))


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores of each expression under each protocol, in the order of the metadata file.

    Attributes:
        expressions: as `Statistics.expressions`.
        values: a number for each expression, by `PROTOCOL/MEASURE`; NaN if undefined. A metric that is a ratio of sums
            has `PROTOCOL/MEASURE/over` and `.../under`.
        curves: F at the 255 thresholds, summed over the frames with an object, for `canonical` and `released`.
        facts: as `Statistics.facts`.
    """

    expressions: pd.DataFrame
    values: dict[str, Float[np.ndarray, " n"]]
    curves: dict[str, Float[np.ndarray, "n k"]]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.expressions)

    def rows(self, **wanted: str) -> Int[np.ndarray, " m"]:
        """The expressions with these column values, e.g. `split="test_s", dimension="acoustic"`.

        Raises:
            StatisticsError: there are none; the message lists the values that the column has.
        """
        chosen = np.ones(len(self), bool)
        for name, value in wanted.items():
            chosen &= (self.expressions[name] == value).to_numpy()
            if not chosen.any():
                found = ", ".join(sorted(map(str, self.expressions[name].unique()))) or "none at all"
                raise StatisticsError(f"the statistics have no expression with {name} {value!r}; they have {found}")
        return np.flatnonzero(chosen)


def expression_results(blocks: Iterable[Statistics], protocols: Sequence[str] | None = None) -> Results:
    """Scores from the parts of one run, as `statistics_blocks` yields them; their order does not matter.

    Args:
        protocols: the protocols to compute; the parts need only their histograms. None computes all.

    Raises:
        ConfigError: a protocol is unknown.
        StatisticsError: there are no parts.
    """
    wanted = set(PROTOCOLS if protocols is None else protocols)
    histograms_of(wanted)
    parts = [_block(block, wanted) for block in map(_with_label, blocks) if len(block)]
    if not parts:
        raise StatisticsError("no statistics of any expression; evaluate a split that the store has")
    whole = joined(parts)
    order = np.argsort(whole.expressions["row"].to_numpy(), kind="stable")
    return spread(whole, order, whole.expressions.iloc[order])


def _with_label(block: Statistics) -> Statistics:
    """The expressions that have at least one labelled frame."""
    return block.select(np.flatnonzero(block.frames[LABELLED].any(1))) if LABELLED in block.frames else block


def joined(parts: Sequence[Results]) -> Results:
    """Concatenates results."""
    return Results(
        expressions=pd.concat([part.expressions for part in parts], ignore_index=True),
        values={name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        curves={name: np.concatenate([part.curves[name] for part in parts]) for name in parts[0].curves},
        facts=parts[0].facts,
    )


def spread(results: Results, places: Int[np.ndarray, " n"], expressions: pd.DataFrame) -> Results:
    """The scores at `places`, which may repeat, as the scores of `expressions`."""
    return Results(
        expressions=expressions.reset_index(drop=True),
        values={name: values[places] for name, values in results.values.items()},
        curves={name: curves[places] for name, curves in results.curves.items()},
        facts=results.facts,
    )


def _block(block: Statistics, protocols: set[str]) -> Results:
    values: dict[str, Tensor] = {}
    curves: dict[str, np.ndarray] = {}
    counts = {prefix: block.counts(prefix, level) for prefix, level in {PROTOCOLS[name].view for name in protocols}}
    for name in (name for name in PROTOCOLS if name in protocols):
        protocol = PROTOCOLS[name]
        lacking = [count for count in protocol.reads if count not in block.frames]
        if lacking and not protocol.partly:
            raise StatisticsError(f"the statistics lack {', '.join(lacking)}, which the protocol {name} needs; "
                                  "evaluate the run again")
        found = protocol.scores(block, counts[protocol.view[0]])
        values |= {f"{name}/{measure}": value for measure, value in found.items()}
        if protocol.keeps_curves and not lacking:
            curves[name] = counts[protocol.view[0]].f_sum.numpy()
    return Results(
        expressions=block.expressions,
        values={name: value.double().numpy() for name, value in values.items()},
        curves=curves,
        facts=block.facts,
    )


def histograms_of(protocols: Iterable[str]) -> tuple[str, ...]:
    """The histograms that these protocols need.

    Raises:
        ConfigError: a protocol is unknown.
    """
    wanted = set(protocols)
    unknown = sorted(wanted - set(PROTOCOLS))
    if unknown:
        raise ConfigError(f"no protocol {unknown[0]!r}; {nearest(unknown[0], PROTOCOLS)}")
    return tuple(name for name in HISTOGRAMS if any(name in PROTOCOLS[protocol].reads for protocol in wanted))


def _released(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """The values that `_released_values` averages over batches."""
    area = counts.over_frames(torch.from_numpy(block.frames["released_pred_50"].astype(np.int64)).double())
    return {
        "J": counts.over_frames(_jaccard_or_background(counts)),
        "area": area / counts.num_pixels,
        "num_object_frames": counts.present.sum(1),
    }


def _canonical(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """Every metric whose counts are present; also `J_object`, J over the frames with an object, and `background`, the
    fraction of correct background pixels in the other frames."""
    found = {
        "J_object": _mean_where(jaccard_per_frame(counts), counts.present),
        "background": _mean_where(_background(counts), counts.absent),
        "num_object_frames": counts.present.sum(1),
    }
    for name, metric in metrics().items():
        if metric.known(block.frames):
            value = metric.per_expression(counts)
            if isinstance(value, Tensor):
                found[name] = value
            else:
                found[f"{name}/over"], found[f"{name}/under"] = value
    return found


def _per_frame(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """Crab's protocol (GeWu-Lab/Crab 9dd8bc7): each frame is scored alone. A frame without object counts its background
    in J and 0 in F. Differs: computed at the size of the store's masks, not 224. Crab also leaves out frames for which
    its language model names no mask; there is no such case here."""
    return {
        "J": counts.over_frames(_jaccard_or_background(counts)),
        "F": counts.over_frames(counts.f_curve.amax(-1)),
        "S": counts.over_frames((counts.pred.double() / counts.num_pixels).sqrt()),
    }


def _per_expression(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """SimToken's protocol (DianJin-HFUT/SimToken 6975001): the authors' formulas with each expression as a batch. F is
    0 if no frame has an object. Differs: computed at the size of the store's masks, not of the video."""
    pred, hits = (torch.from_numpy(block.frames[f"{name}_40"].astype(np.int64)) for name in ("pred", "hits"))
    jaccard = _score_or_background(counts.target, pred, hits, counts.num_pixels)
    return {
        "J": counts.over_frames(jaccard),
        "F": counts.f_sum.amax(-1) / counts.present.sum(1).clamp_min(1),
        "S": counts.over_frames(counts.pred.double() / counts.num_pixels).sqrt(),
    }


def _davis(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """OmniAVS's protocol (FudanCVL/OmniAVS 1bff420): mean over frames of DAVIS's region J and boundary F. A frame with
    neither object nor prediction counts 1. An expression without any object counts 1 if nothing is predicted in any
    frame, else 0. Differs: masks are compared at the size of the store's masks, not of the video."""
    union = (counts.pred + counts.target - counts.hits).double()
    jaccard = counts.over_frames((counts.hits + EPSILON) / (union + EPSILON))
    pred, target, pred_met, target_met = (
        torch.from_numpy(block.frames[name].astype(np.int64)).double() for name in BOUNDARY
    )
    precision, recall = pred_met / pred, target_met / target
    contour = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
    contour = counts.over_frames(torch.where((pred == 0) & (target == 0), 1.0, contour))
    null = ~counts.present.any(1)
    right = ((counts.pred == 0) | ~(counts.present | counts.absent)).all(1).double()
    return {"J": torch.where(null, right, jaccard), "F": torch.where(null, right, contour)}


def _jaccard_or_background(counts: FrameCounts) -> Float[Tensor, "b t"]:
    return _score_or_background(counts.target, counts.pred, counts.hits, counts.num_pixels)


def _score_or_background(target: Tensor, pred: Tensor, hits: Tensor, num_pixels: int) -> Float[Tensor, "b t"]:
    """The authors' J: a frame without object counts its fraction of correct background pixels."""
    jaccard = hits.double() / (pred + target - hits + EPSILON)
    return torch.where(target > 0, jaccard, (num_pixels - pred).double() / (num_pixels + EPSILON))


def _background(counts: FrameCounts) -> Float[Tensor, "b t"]:
    return (counts.num_pixels - counts.pred).double() / counts.num_pixels


def _mean_where(values: Float[Tensor, "b t"], chosen: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    return (values * chosen).sum(1) / chosen.sum(1)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(math.fsum(known) / len(known)) if len(known) else math.nan


def _canonical_values(results: Results, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """The means, and `F_split`, the maximum of the mean curve, with one threshold for all rows."""
    values = {name.removeprefix("canonical/"): each[rows] for name, each in results.values.items()
              if name.startswith("canonical/")}  # fmt: skip
    found = {name: _mean(values[name]) for name in (*metrics(), "J_object", "background") if name in values}
    for name in metrics():
        if f"{name}/over" in values:
            over, under = values[f"{name}/over"], values[f"{name}/under"]
            found[name] = float(over.sum() / under.sum()) if under.any() else math.nan
    if "canonical" in results.curves:
        num_frames = values["num_object_frames"]
        curves = results.curves["canonical"][rows][num_frames > 0] / num_frames[num_frames > 0, None]
        found["F_split"] = float(curves.mean(0).max()) if len(curves) else math.nan
    return found


def _released_values(results: Results, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """The authors' values (GeWu-Lab/Ref-AVS 82eb688): means over batches of 4 rows in the file's order. A short last
    batch counts fully; a batch without objects has F 0. Each group is batched as if it were a split."""
    starts = np.arange(0, len(rows), BATCH_CLIPS)
    sizes = np.diff(np.append(starts, len(rows)))
    rows = np.sort(rows)
    values = {name: np.add.reduceat(results.values[f"released/{name}"][rows], starts)
              for name in ("J", "area", "num_object_frames")}  # fmt: skip
    curves = np.add.reduceat(results.curves["released"][rows], starts)
    return {
        "J": _mean(values["J"] / sizes),
        "F": _mean(curves.max(1) / np.maximum(values["num_object_frames"], 1)),
        "S": _mean(np.sqrt(values["area"] / sizes)),
    }


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a publication, or `canonical`, computes its numbers.

    Attributes:
        scores: computes the scores of each expression, by measure, from its counts.
        measures: the measures that the publication prints; empty for `canonical`, which has every metric.
        values: computes the values of a group of expressions, by measure; None takes the means of `measures`.
        about: description for readers.
        reads: the counts it needs in addition to those in every file.
        view: prefix and threshold of its counts, as arguments of `Statistics.counts`.
        partly: whether measures with missing counts are left out while the others are computed.
        keeps_curves: whether `values` needs the F curves.
        of_batches: whether it scores batches, so that scores of single expressions are meaningless.
    """

    scores: Callable[[Statistics, FrameCounts], dict[str, Tensor]]
    about: str
    measures: tuple[str, ...] = ()
    values: Callable[[Results, np.ndarray], dict[str, float]] | None = None
    reads: tuple[str, ...] = HISTOGRAMS[:2]
    view: tuple[str, str] = ("", "50")
    partly: bool = False
    keeps_curves: bool = False
    of_batches: bool = False


PROTOCOLS = {
    "canonical": Protocol(
        scores=_canonical, values=_canonical_values, partly=True, keeps_curves=True,
        about="ours: per expression at the size of the masks, J and S at 0.5, F at the best threshold of each "
        "expression; a frame without object counts 1 in J if nothing is predicted in it, else 0",
    ),
    "released": Protocol(
        scores=_released, values=_released_values, measures=("J", "F", "S"), keeps_curves=True,
        of_batches=True, view=("released_", "40"),
        reads=tuple(name for name in (*COUNTS, *HISTOGRAMS) if name.startswith("released_")),
        about="the authors' code: 256 x 256, J at 0.4, F at the best threshold of each batch of 4 clips in the order "
        "of the file, S pooled over such a batch",
    ),
    "per_frame": Protocol(
        scores=_per_frame, measures=("J", "F", "S"),
        about="as Crab: J at 0.5, F at the best threshold of each frame, S per frame",
    ),
    "per_expression": Protocol(
        scores=_per_expression, measures=("J", "F", "S"), reads=("pred_40", "hits_40", *HISTOGRAMS[:2]),
        about="as SimToken: J at 0.4, F at the best threshold of each expression",
    ),
    "davis": Protocol(
        scores=_davis, measures=("J", "F"), reads=BOUNDARY,
        about="as OmniAVS: region J at 0.5 and F of the contours; no S",
    ),
}  # fmt: skip


def protocol_values(results: Results, protocol: str, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """The measures of a group of expressions, as fractions; an empty mean is NaN.

    Raises:
        ConfigError: the protocol is unknown.
        StatisticsError: `rows` is empty.
    """
    histograms_of([protocol])
    if not len(rows):
        raise StatisticsError("a group without expressions has no scores; leave it out")
    values = PROTOCOLS[protocol].values
    if values is not None:
        return values(results, rows)
    return {name: _mean(results.values[f"{protocol}/{name}"][rows]) for name in PROTOCOLS[protocol].measures}


def grouped(expressions: pd.DataFrame, by: Sequence[str]) -> dict[str, Int[np.ndarray, " m"]]:
    """Rows by column values joined with `/`, e.g. `test_s/acoustic`; rows with an empty value are left out."""
    places: dict[str, list[int]] = {}
    for place, values in enumerate(zip(*(expressions[name].astype(str) for name in by), strict=True)):
        if all(values):
            places.setdefault("/".join(values), []).append(place)
    return {name: np.array(rows) for name, rows in sorted(places.items())}
