"""The gallery: one run's predictions for its best, median and worst expressions, and false objects on null ones.

The layout follows Fig. 4 of Ref-AVS (arXiv 2407.10957v1): outlined frames, audio below, the sentence above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from experiments.grid.config import TrainConfig
from experiments.report.clip_steps import DrawnStep, footage_of, steps_of
from experiments.report.tables import GallerySource
from experiments.tracking.connection import without_password
from experiments.training.evaluate import one_thread, predictions
from refavs.data.splits import Splits
from refavs.errors import RefAVSError
from refavs.metrics import statistics_blocks
from refavs.metrics.segmentation import jaccard_per_frame
from refavs.model.checkpoint import load_model, read_config
from refavs.store import FeatureStore

PER_GROUP = 2
DRIFT = 0.02  # tolerated difference in J between this machine's prediction and the run's own


@dataclass(frozen=True, kw_only=True)
class Card:
    """One expression with its clip.

    Attributes:
        score: its measure with the name, e.g. `J 71.3 %`.
        width: width of its pictures in pixels.
        note: text about anything missing or unusual.
    """

    sentence: str
    uid: str
    split: str
    dimension: str
    score: str
    width: int
    steps: tuple[DrawnStep, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Expressions chosen for one reason, given in `text`."""

    name: str
    title: str
    text: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The gallery of one run.

    Attributes:
        reason: why there is nothing to show; empty otherwise.
    """

    label: str = ""
    groups: tuple[Group, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Expressions of the test splits.

    Attributes:
        table: one line per expression, as in `Statistics.expressions`.
        jaccard: canonical J.
        empty: whether an expression refers to nothing in all frames.
        area: predicted fraction of all pixels.
    """

    table: pd.DataFrame
    jaccard: Float[np.ndarray, " n"]
    empty: Bool[np.ndarray, " n"]
    area: Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A group before drawing: indices into `Scored`."""

    name: str
    title: str
    text: str
    places: tuple[int, ...]


def make_gallery(source: GallerySource | None) -> Gallery:
    """Predicts and draws the chosen expressions; gives the reason if there is nothing to show."""
    if source is None:
        return Gallery(reason="no run of this report keeps what a gallery needs")
    if source.store is None:
        reason = "the sweep does not say where its store is; its refavs-sweep command, run again, records it"
        return Gallery(label=source.label, reason=reason)
    if "://" in source.store and not source.given:
        place = without_password(source.store)
        return Gallery(label=source.label, reason=f"the sweep says that its store is at {place}, an address that this "
                       f"command was not given; give it by --store {place} where you trust it")  # fmt: skip
    try:
        store = FeatureStore(source.store)
        if store.fingerprint != source.fingerprint:
            return Gallery(
                label=source.label,
                reason=f"the store {store.location} has changed since: its fingerprint is {store.fingerprint[:16]}, "
                f"the run's was {source.fingerprint[:16]}",
            )  # fmt: skip
        scored = read_scores(source, Splits.of(store.attributes))
        choices = choose(scored)
        cards = cards_of(source, store, scored, [place for choice in choices for place in choice.places])
    except RefAVSError as error:
        return Gallery(label=source.label, reason=str(error))
    groups = tuple(
        Group(name=c.name, title=c.title, text=c.text, cards=tuple(cards[place] for place in c.places)) for c in choices
    )
    return Gallery(label=source.label, groups=groups)


def read_scores(source: GallerySource, splits: Splits) -> Scored:
    """The test splits' expressions from the run's statistics.

    Raises:
        StatisticsError: the file is missing or damaged.
    """
    found: dict[str, list[np.ndarray]] = {"jaccard": [], "empty": [], "area": []}
    tables: list[pd.DataFrame] = []
    for block in statistics_blocks(source.statistics, histograms=()):
        tested = block.select(block.expressions["split"].isin(splits.tested).to_numpy())
        counts = tested.counts()
        tables.append(tested.expressions)
        found["jaccard"].append(counts.over_frames(jaccard_per_frame(counts)).numpy())
        found["empty"].append((~counts.present.any(1)).numpy())
        found["area"].append(counts.over_frames(counts.pred.double() / counts.num_pixels).numpy())
    return Scored(
        table=pd.concat(tables, ignore_index=True), **{name: np.concatenate(parts) for name, parts in found.items()}
    )


def choose(scored: Scored) -> tuple[Choice, ...]:
    """Best, median and worst by J, and the largest false objects; each of a group from a different clip."""
    clips = scored.table["clip_id"].tolist()
    objects, nulls = np.flatnonzero(~scored.empty), np.flatnonzero(scored.empty)
    found = []
    if len(objects):
        order = objects[np.argsort(scored.jaccard[objects], kind="stable")]
        middle = len(order) // 2
        from_middle = order[np.argsort(np.abs(np.arange(len(order)) - middle), kind="stable")]
        lost = int((scored.jaccard[objects] < 0.01).sum())
        of = f"of {len(objects)} test expressions that refer to an object"
        for name, text, wanted in (
            ("best", f"The largest J {of}.", order[::-1]),
            ("median", f"The middle {of}: median J {100 * np.median(scored.jaccard[objects]):.1f} %.", from_middle),
            ("worst", f"The smallest J {of}; {lost} of them have a J below 1 %.", order),
        ):
            found.append(Choice(name=name, title=f"{name.capitalize()} expressions", text=text,
                                places=_of_other_clips(wanted, clips)))  # fmt: skip
    if len(nulls):
        wrong = nulls[scored.area[nulls] > 0]
        order = wrong[np.argsort(-scored.area[wrong], kind="stable")]
        text = f"{len(wrong)} of {len(nulls)} expressions that refer to nothing are given an object in some frame"
        text += "; these are given the largest." if len(wrong) else "."
        title = "False objects on null expressions"
        found.append(Choice(name="null", title=title, text=text, places=_of_other_clips(order, clips)))
    return tuple(found)


def _of_other_clips(order: Int[np.ndarray, " n"], clips: Sequence[str]) -> tuple[int, ...]:
    first: dict[str, int] = {}
    for place in map(int, order):
        first.setdefault(clips[place], place)
    return tuple(first.values())[:PER_GROUP]


@one_thread()
def cards_of(
    source: GallerySource, store: FeatureStore, scored: Scored, places: Sequence[int]
) -> dict[int, Card]:
    """The cards of these expressions, predicted here; one that is in two groups is predicted once."""
    distinct = sorted(set(places))
    model = load_model(source.checkpoint)
    settings: dict[str, Any] = read_config(source.checkpoint)["facts"].get("trial", {}).get("train", {})
    config = TrainConfig(precision=settings.get("precision", "fp32"), eval_batch_size=1)
    wanted = [int(scored.table["row"].iloc[place]) for place in distinct]
    found = {}
    for place, (batch, probs) in zip(
        distinct, predictions(config, model, store, wanted, torch.device("cpu")), strict=True
    ):
        assert batch.mask is not None and batch.labelled is not None
        pred, truth = (probs[0] > 0.5).numpy(), batch.mask[0].numpy()
        found[place] = _card(store, scored, place, pred, truth, batch.labelled[0].numpy())
    return found


def _card(
    store: FeatureStore, scored: Scored, place: int, pred: np.ndarray, truth: np.ndarray, labelled: np.ndarray
) -> Card:
    facts = scored.table.iloc[place]
    hits, union = (pred & truth).sum((1, 2)), (pred | truth).sum((1, 2))
    scores = np.where(truth.any((1, 2)), hits / np.maximum(union, 1), ~pred.any((1, 2)))
    footage = footage_of(store, str(facts["clip_id"]))
    notes = [footage.note] * bool(footage.note)
    score = scores[labelled].mean()
    if abs(score - scored.jaccard[place]) > DRIFT:
        notes.append(f"Predicted again for this page it scores {100 * score:.1f} %.")
    area = f"{100 * scored.area[place]:.1f} % of all pixels predicted"
    return Card(
        sentence=str(facts["text"]), uid=str(facts["uid"]), split=str(facts["split"]),
        dimension=str(facts["dimension"]), width=footage.width, note=" ".join(notes),
        score=area if scored.empty[place] else f"J {100 * scored.jaccard[place]:.1f} %",
        steps=steps_of(footage, pred, truth, np.where(labelled, scores, np.nan).tolist()),
    )  # fmt: skip
