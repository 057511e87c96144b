"""refavs-predict with the heads of other methods: a video's masks are those of its stored features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.predict.cli import main
from experiments.predict.segmenter import masks_of
from refavs.data.batches import collate
from refavs.model.heads.registry import implementation_of, options_class
from refavs.store import FeatureStore
from tests.experiments.small_run import SENTENCES, make_store, save_trial, video_of
from tests.experiments.test_baseline_trial import HEADS, SIMTOKEN
from tests.support.small_networks import WRITERS

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]
VISUAL = ("pvt-v2-b2", "sam-vit-base", "sam2.1-hiera-tiny")
STREAMS = f"{','.join(VISUAL)},tiny-vggish,tiny-roberta"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small relatives of PVT, SAM and SAM 2.1."""
    folder = tmp_path_factory.mktemp("weights")
    for name in VISUAL:
        WRITERS[name](folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> FeatureStore:
    """Two seconds of a video of three."""
    return make_store(tmp_path_factory.mktemp("heads"), "--streams", STREAMS, "--weights", "pretrained",
                      "--weights-dir", str(weights), "--seconds", "2", duration_s=3)  # fmt: skip


@pytest.mark.parametrize(("head", "visual", "settings"), [
    ("avsegformer", "pvt-v2-b2", HEADS["avsegformer"]), ("gavs", "sam-vit-base", HEADS["gavs"]),
    ("simtoken", "sam2.1-hiera-tiny", SIMTOKEN | {"object_score": 0.0}),
])  # fmt: skip
def test_masks_of_a_video_are_those_of_its_stored_features(
    store: FeatureStore, weights: Path, tmp_path: Path, head: str, visual: str, settings: dict[str, Any]
) -> None:  # fmt: skip
    store = FeatureStore(store.location, {"visual": visual})
    torch.manual_seed(0)
    options = options_class(head)(**settings)
    model = implementation_of(options).from_store(store, options).eval()
    trial, out = save_trial(store, tmp_path / "trial", model), tmp_path / "out"
    assert main([str(video_of(store)), *SENTENCES, "--run", str(trial), "--weights-dir", str(weights), "--out",
                 str(out), "--no-overlay"]) == 0  # fmt: skip
    told = json.loads((out / "prediction.json").read_text())["predictions"]
    samples = [store[row] for row in (0, 1)]
    with torch.no_grad():
        probs = model.probs(model(collate(samples)), (store.mask_size, store.mask_size))
    for sample, one in zip(samples, probs, strict=True):
        number = SENTENCES.index(sample.text_string)
        found = [np.asarray(Image.open(out / str(number + 1) / f"{second}.png")) > 0 for second in range(3)]
        assert (np.stack(found[:2]) != masks_of(one, 72, 128)).mean() < 1e-3
        highest = told[number]["object_probability"]
        np.testing.assert_allclose(highest[:2], one.amax(dim=(1, 2)), atol=1e-5)
        assert len({*highest}) == 3, "the seconds look and sound alike to this head"
