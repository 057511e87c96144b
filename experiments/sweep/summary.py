"""What each trial of a sweep reached, as CSV."""

from collections.abc import Sequence

import pandas as pd

from experiments.records.ledger import Entry
from experiments.records.stores import store_of
from refavs.store import FeatureStore


def csv_text(entries: Sequence[Entry], controls: dict[str, dict[str, float]], store: FeatureStore) -> str:
    """All metrics, as fractions, of every finished trial (a line per seed) and constant prediction.

    Args:
        store: the store of trials without one of their own; a column says whether its encoders have random weights.
    """
    def features(trained_on: FeatureStore) -> dict[str, str]:
        return {"features": "random weights" if trained_on.random_weights else "pretrained"}

    lines = [
        {"trial": entry.trial.name, "seed": entry.trial.config.seed, "key": entry.key,
         **features(store_of(entry.trial, store)), **result["metrics"]}
        for entry in entries
        if (result := entry.result) is not None and entry.state == "finished"
    ]  # fmt: skip
    lines += [{"trial": name, "seed": "", "key": "", **features(store), **values} for name, values in controls.items()]
    return pd.DataFrame(lines).to_csv(index=False)
