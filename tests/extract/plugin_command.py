"""The command on a source made in memory, with the example package's encoders, whose features are known by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refavs.data.batches import Batch, batches
from refavs.data.layouts import Source
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.store.reader import FeatureStore
from tests.extract.command import in_this_process, run_with

PLUGIN = Path(__file__).parents[1] / "plugin"


def plugin_command(
    monkeypatch: pytest.MonkeyPatch, source: Source, store: Path, **own: Callable[..., Any]
) -> list[str]:  # fmt: skip
    """The arguments that extract `source` with the encoders patches-14, letters and quarters-48k, and with `own`."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    from refavs_example import encoders

    kinds = {"patches-14": encoders.patches, "letters": encoders.letters, "quarters-48k": encoders.quarters, **own}
    run_with(monkeypatch, in_this_process)
    monkeypatch.setattr("refavs.data.layouts.read_source", lambda *_: source)
    monkeypatch.setattr("extract.encoders.streams.make_encoder", lambda name, setup: kinds[name](setup))
    return [str(source.root), str(store), "--streams", ",".join(kinds)]


def train_a_step(store: FeatureStore) -> Batch:
    """One step of the example package's head on the first two expressions, whose batch is returned."""
    from refavs_example.head import Agreement
    from refavs_example.options import AgreementOptions

    options = AgreementOptions(width=4)
    head = Agreement(options, FeatureSizes.from_store(store, options.needs()))
    head.set_statistics(store.statistics)
    (batch,) = batches(store, [0, 1], 2)
    assert batch.mask is not None
    head.loss(head(batch), Target(masks=batch.mask, labelled=batch.labelled), LossConfig())["total"].backward()
    gradient = head.see.weight.grad
    assert gradient is not None and math.isfinite(float(gradient.sum())) and gradient.any()
    return batch
