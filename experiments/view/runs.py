"""The expressions of a run by score, and its prediction beside the truth."""

import numpy as np
import pandas as pd

from experiments.report.gallery import Card, cards_of
from experiments.view.shown import ShownRun
from refavs.errors import RefAVSError

WORST, BEST, FALSE = "worst", "best", "false objects"
ORDERS = (WORST, BEST, FALSE)


def ranked(shown: ShownRun, order: str = WORST, text: str = "", split: str = "") -> pd.DataFrame:
    """The test expressions in one of `ORDERS`: `row`, `J`, `area`, `split`, `dimension`, `grade`, `text`, `clip_id`.

    Best and worst are by canonical J of the expressions that refer to an object; false objects are those predicted for
    expressions that refer to nothing, by the predicted share of all pixels. Numbers are in percent.

    Args:
        text: what the expression or its clip's id contains, in any case.

    Raises:
        StatisticsError: the statistics are missing or damaged.
    """
    scored = shown.scored
    columns = ["row", "split", "dimension", "grade", "text", "clip_id"]
    table = scored.table[columns].assign(J=100 * scored.jaccard, area=100 * scored.area)
    chosen = scored.empty & (scored.area > 0) if order == FALSE else ~scored.empty
    if wanted := text.strip().casefold():
        words = table["text"].str.casefold() + "\n" + table["clip_id"].str.casefold()
        chosen = chosen & words.str.contains(wanted, regex=False).to_numpy(bool)
    if split:
        chosen = chosen & (table["split"] == split).to_numpy(bool)
    key, ascending = ("area", False) if order == FALSE else ("J", order == WORST)
    return table.loc[chosen].sort_values(by=key, ascending=ascending, kind="stable")


def splits_of(shown: ShownRun) -> list[str]:
    """The splits with statistics."""
    return sorted(set(shown.scored.table["split"]))


def card(shown: ShownRun, row: int) -> Card:
    """Predicts one expression again and draws it beside its ground truth, step by step.

    Args:
        row: of the expression in the store's table.

    Raises:
        RefAVSError: the store or the checkpoint cannot be used, or the run has no such expression.
    """
    places = np.flatnonzero((shown.scored.table["row"] == row).to_numpy())
    if not len(places):
        raise RefAVSError(f"the run {shown.name} has no expression {row}; choose one of its table")
    place = int(places[0])
    return cards_of(shown.source, shown.store, shown.scored, [place])[place]
