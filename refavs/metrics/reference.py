"""Every published protocol from the statistics of one inference. Their numbers differ and never mix: name them.

| protocol         | size      | J at | F                                  | S                 | mean over        |
|------------------|-----------|------|------------------------------------|-------------------|------------------|
| `canonical`      | masks     | 0.5  | maximum of an expression           | of an expression  | expressions      |
| `released`       | 256 x 256 | 0.4  | maximum of a batch of 4 clips      | of a batch        | batches          |
| `per_frame`      | masks     | 0.5  | maximum of a frame                 | of a frame        | frames           |
| `per_expression` | masks     | 0.4  | maximum of an expression           | of an expression  | expressions      |
| `davis`          | masks     | 0.5  | of the contours, no maximum        | none              | expressions      |
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refavs.config import nearest
from refavs.errors import ConfigError, StatisticsError
from refavs.metrics.frame_counts import HISTOGRAMS, Statistics
from refavs.metrics.segmentation import FrameCounts, f_curve, jaccard_per_frame

BATCH_CLIPS = 4
EPSILON = 1e-7  # of the authors' J


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores of each expression under each protocol, in the order of the metadata file.

    Attributes:
        expressions: as `Statistics.expressions`.
        values: a number for each expression by `PROTOCOL/MEASURE`; NaN where it says nothing.
        curves: sums over the frames with an object of F at the 255 thresholds, of `canonical` and `released`.
        facts: as `Statistics.facts`.
    """

    expressions: pd.DataFrame
    values: dict[str, Float[np.ndarray, " n"]]
    curves: dict[str, Float[np.ndarray, "n k"]]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.expressions)

    def rows(self, **wanted: str) -> Int[np.ndarray, " m"]:
        """The expressions with these columns, e.g. `split="test_s", dimension="acoustic"`.

        Raises:
            StatisticsError: there is none; says what values the column has.
        """
        chosen = np.ones(len(self), bool)
        for name, value in wanted.items():
            chosen &= (self.expressions[name] == value).to_numpy()
            if not chosen.any():
                found = ", ".join(sorted(map(str, self.expressions[name].unique()))) or "none at all"
                raise StatisticsError(f"the statistics hold no expression of {name} {value!r}; they hold {found}")
        return np.flatnonzero(chosen)


def expression_results(blocks: Iterable[Statistics], protocols: Sequence[str] | None = None) -> Results:
    """Scores from the parts of one run, as `statistics_blocks` gives them; the order of the parts changes nothing.

    Args:
        protocols: the wanted ones, of whose histograms alone the parts need to have; all where none are given.

    Raises:
        ConfigError: there is no such protocol.
        StatisticsError: there is no part.
    """
    wanted = set(PROTOCOLS if protocols is None else protocols)
    histograms_of(wanted)
    parts = [_block(block, wanted) for block in blocks if len(block)]
    if not parts:
        raise StatisticsError("no statistics of any expression; evaluate a split that the store has")
    whole = joined(parts)
    order = np.argsort(whole.expressions["row"].to_numpy(), kind="stable")
    return spread(whole, order, whole.expressions.iloc[order])


def joined(parts: Sequence[Results]) -> Results:
    """All parts, one after the other."""
    return Results(
        expressions=pd.concat([part.expressions for part in parts], ignore_index=True),
        values={name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        curves={name: np.concatenate([part.curves[name] for part in parts]) for name in parts[0].curves},
        facts=parts[0].facts,
    )


def spread(results: Results, places: Int[np.ndarray, " n"], expressions: pd.DataFrame) -> Results:
    """The scores at `places`, each as often as it is named, as those of `expressions`."""
    return Results(
        expressions=expressions.reset_index(drop=True),
        values={name: values[places] for name, values in results.values.items()},
        curves={name: curves[places] for name, curves in results.curves.items()},
        facts=results.facts,
    )


def _block(block: Statistics, protocols: set[str]) -> Results:
    values: dict[str, Tensor] = {}
    curves: dict[str, np.ndarray] = {}
    if protocols & NATIVE:
        counts = block.counts()
        curve = f_curve(counts)
        values |= _canonical(counts, curve) if "canonical" in protocols else {}
        values |= _per_frame(counts, curve) if "per_frame" in protocols else {}
        values |= _per_expression(block, counts, curve) if "per_expression" in protocols else {}
        values |= _davis(block, counts) if "davis" in protocols else {}
        curves |= {"canonical": curve.sum(1).numpy()} if "canonical" in protocols else {}
    if "released" in protocols:
        small = block.counts("released_", "40")
        values |= _released(block, small)
        curves["released"] = f_curve(small).sum(1).numpy()
    return Results(
        expressions=block.expressions,
        values={name: value.double().numpy() for name, value in values.items()},
        curves=curves,
        facts=block.facts,
    )


def histograms_of(protocols: Iterable[str]) -> tuple[str, ...]:
    """The histograms from which these protocols are computed.

    Raises:
        ConfigError: there is no such protocol.
    """
    wanted = set(protocols)
    unknown = sorted(wanted - set(PROTOCOLS))
    if unknown:
        raise ConfigError(f"no protocol {unknown[0]!r}; {nearest(unknown[0], PROTOCOLS)}")
    return tuple(name for name in HISTOGRAMS if wanted & ({"released"} if name.startswith("released_") else NATIVE))


def _released(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """What `_released_values` averages over batches."""
    area = torch.from_numpy(block.frames["released_pred_50"].astype(np.int64)).double().mean(1)
    return {
        "released/J": _jaccard_or_background(counts).mean(1),
        "released/area": area / counts.num_pixels,
        "released/num_object_frames": (counts.target > 0).sum(1),
    }


def _canonical(counts: FrameCounts, curve: Float[Tensor, "b t k"]) -> dict[str, Tensor]:
    """Ours. A frame without object counts 1 in J if nothing is predicted in it, else 0, and not at all in J_object;
    `background` is its share of pixels that are rightly left out. F is NaN where no frame has an object."""
    present = counts.target > 0
    jaccard = jaccard_per_frame(counts)
    return {
        "canonical/J": jaccard.mean(1),
        "canonical/J_object": _mean_where(jaccard, present),
        "canonical/background": _mean_where(_background(counts), ~present),
        "canonical/F": curve.sum(1).amax(-1) / present.sum(1),
        "canonical/S": (counts.pred.double() / counts.num_pixels).mean(1).sqrt(),
        "canonical/num_object_frames": present.sum(1),
        "canonical/num_false_empty": (present & (counts.pred == 0)).sum(1),
    }


def _per_frame(counts: FrameCounts, curve: Float[Tensor, "b t k"]) -> dict[str, Tensor]:
    """Crab's (GeWu-Lab/Crab 9dd8bc7): each frame is scored alone. A frame without object counts its background in J
    and 0 in F. Differs: at the size of the store's masks, not 224; and Crab leaves out frames for which its language
    model names no mask, which this model has not."""
    return {
        "per_frame/J": _jaccard_or_background(counts).mean(1),
        "per_frame/F": curve.amax(-1).mean(1),
        "per_frame/S": (counts.pred.double() / counts.num_pixels).sqrt().mean(1),
    }


def _per_expression(block: Statistics, counts: FrameCounts, curve: Float[Tensor, "b t k"]) -> dict[str, Tensor]:
    """SimToken's (DianJin-HFUT/SimToken 6975001): the authors' formulas with each expression as a batch. Where no frame
    has an object, F counts 0. Differs: at the size of the store's masks, not of the video."""
    pred, hits = (torch.from_numpy(block.frames[f"{name}_40"].astype(np.int64)) for name in ("pred", "hits"))
    present = counts.target > 0
    return {
        "per_expression/J": _score_or_background(counts.target, pred, hits, counts.num_pixels).mean(1),
        "per_expression/F": curve.sum(1).amax(-1) / present.sum(1).clamp_min(1),
        "per_expression/S": (counts.pred.double() / counts.num_pixels).mean(1).sqrt(),
    }


def _davis(block: Statistics, counts: FrameCounts) -> dict[str, Tensor]:
    """OmniAVS's (FudanCVL/OmniAVS 1bff420): region J and boundary F of DAVIS per frame, then the mean. A frame with
    neither object nor prediction counts 1; so does an expression without any object if nothing is predicted in any of
    its frames, and it counts 0 otherwise. Differs: masks are compared at the size of the store's, not of the video."""
    union = (counts.pred + counts.target - counts.hits).double()
    jaccard = ((counts.hits + EPSILON) / (union + EPSILON)).mean(1)
    names = ("pred", "target", "pred_met", "target_met")
    pred, target, pred_met, target_met = (
        torch.from_numpy(block.frames[f"boundary_{name}"].astype(np.int64)).double() for name in names
    )
    precision, recall = pred_met / pred, target_met / target
    contour = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
    contour = torch.where((pred == 0) & (target == 0), 1.0, contour).mean(1)
    null = (counts.target == 0).all(1)
    right = (counts.pred == 0).all(1).double()
    return {"davis/J": torch.where(null, right, jaccard), "davis/F": torch.where(null, right, contour)}


def _jaccard_or_background(counts: FrameCounts) -> Float[Tensor, "b t"]:
    return _score_or_background(counts.target, counts.pred, counts.hits, counts.num_pixels)


def _score_or_background(target: Tensor, pred: Tensor, hits: Tensor, num_pixels: int) -> Float[Tensor, "b t"]:
    """The authors' J: a frame without object counts its share of background pixels that are right."""
    jaccard = hits.double() / (pred + target - hits + EPSILON)
    return torch.where(target > 0, jaccard, (num_pixels - pred).double() / (num_pixels + EPSILON))


def _background(counts: FrameCounts) -> Float[Tensor, "b t"]:
    return (counts.num_pixels - counts.pred).double() / counts.num_pixels


def _mean_where(values: Float[Tensor, "b t"], chosen: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    return (values * chosen).sum(1) / chosen.sum(1)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(math.fsum(known) / len(known)) if len(known) else math.nan


def _means(protocol: str, *measures: str) -> Callable[[Results, np.ndarray], dict[str, float]]:
    def mean(results: Results, rows: np.ndarray) -> dict[str, float]:
        return {measure: _mean(results.values[f"{protocol}/{measure}"][rows]) for measure in measures}

    return mean


def _canonical_values(results: Results, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Also `F_split`: the maximum over thresholds of the mean curve, one threshold for all rows."""
    found = _means("canonical", "J", "F", "S", "J_object", "background")(results, rows)
    num_frames = results.values["canonical/num_object_frames"][rows]
    empty = results.values["canonical/num_false_empty"][rows].sum()
    found["false_empty"] = float(empty / num_frames.sum()) if num_frames.any() else math.nan
    curves = results.curves["canonical"][rows][num_frames > 0] / num_frames[num_frames > 0, None]
    found["F_split"] = float(curves.mean(0).max()) if len(curves) else math.nan
    return found


def _released_values(results: Results, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """The authors' (GeWu-Lab/Ref-AVS 82eb688): means over batches of 4 of the rows in the file's order; a short last
    batch counts as one, a batch without objects has F 0. A group is batched as if it were a split of its own."""
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


PROTOCOLS: dict[str, Callable[[Results, np.ndarray], dict[str, float]]] = {
    "canonical": _canonical_values,
    "released": _released_values,
    "per_frame": _means("per_frame", "J", "F", "S"),
    "per_expression": _means("per_expression", "J", "F", "S"),
    "davis": _means("davis", "J", "F"),
}  # the only place a protocol is listed
NATIVE = set(PROTOCOLS) - {"released"}  # those at the size of the masks


def protocol_values(results: Results, protocol: str, rows: Int[np.ndarray, " m"]) -> dict[str, float]:
    """J, F, S (where the protocol has them) of a group of expressions, as fractions; a mean over nothing is NaN.

    Raises:
        ConfigError: there is no such protocol.
        StatisticsError: `rows` is empty.
    """
    histograms_of([protocol])
    if not len(rows):
        raise StatisticsError("a group without expressions has no scores; leave it out")
    return PROTOCOLS[protocol](results, rows)


def grouped(expressions: pd.DataFrame, by: Sequence[str]) -> dict[str, Int[np.ndarray, " m"]]:
    """Rows by the values of columns, joined by `/`, e.g. `test_s/acoustic`; lines with an empty value are left out."""
    places: dict[str, list[int]] = {}
    for place, values in enumerate(zip(*(expressions[name].astype(str) for name in by), strict=True)):
        if all(values):
            places.setdefault("/".join(values), []).append(place)
    return {name: np.array(rows) for name, rows in sorted(places.items())}


def all_protocols(
    results: Results, groups: Mapping[str, Int[np.ndarray, " m"]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The values of every protocol by its name, the group's and the measure's."""
    return {
        protocol: {name: protocol_values(results, protocol, rows) for name, rows in groups.items()}
        for protocol in PROTOCOLS
    }
