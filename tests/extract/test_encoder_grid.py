"""One store with text and audio encoders of several families, at small sizes, and the grid `encoders` on it."""

import json
from pathlib import Path

import pytest
import torch

from experiments.grid.expand import read_grid
from experiments.records.stores import features_in, store_of
from extract.cli import main
from refavs.config import replace
from refavs.data.batches import batches
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.registry import implementation_of
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, refusal, run_with
from tests.extract.test_hub_encoders import BERT, CLIP, SMALL

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]

STREAMS = ("tiny-swin/pixel_decoder", "vggish", "roberta-base", "flan-t5-base", "languagebind-text",
           "languagebind-audio/seconds")  # fmt: skip
CONFIGS = {
    "roberta-base": BERT, "flan-t5-base": SMALL["flan-t5-base"],
    "LanguageBind_Audio_FT": {"projection_dim": 24, "text_config": CLIP | {"hidden_size": 40}, "vision_config": {
        **SMALL["languagebind-audio"], "num_mel_bins": 112, "target_length": 1036, "audio_mean": -4.27,
        "audio_std": 4.57}},
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    root = tmp_path_factory.mktemp("encoders")
    write_benchmark(root / "bench", num_clips=2, seed=1, size=96, videos=False)
    for name, config in CONFIGS.items():
        (root / "weights" / name).mkdir(parents=True)
        (root / "weights" / name / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        run_with(patch, in_this_process)
        command = [str(root / "bench"), str(root / "store"), "--streams", ",".join(STREAMS), "--weights", "random",
                   "--weights-dir", str(root / "weights"), "--mask-size", "96"]  # fmt: skip
        assert main(command) == 0
    return FeatureStore(root / "store")


def test_sizes_are_those_of_the_files_beside_the_weights(store: FeatureStore) -> None:
    shapes = {path: spec.shape for path, spec in store.specs.items() if path.endswith("/features")}
    assert shapes == {
        "clips/audio/vggish/features": (10, 128), "clips/audio/languagebind-audio/seconds/features": (10, 24),
        "text/roberta-base/features": (25, 32), "text/flan-t5-base/tokens/features": (25, 32),
        "text/flan-t5-base/pooled/features": (1, 32), "text/languagebind-text/tokens/features": (77, 40),
        "text/languagebind-text/pooled/features": (1, 24),
    }  # fmt: skip


def test_grid_encoders_reads_what_each_row_names(store: FeatureStore) -> None:
    rows = {trial.name: trial for trial in read_grid("encoders").trials if trial.config.seed == 0}
    features = features_in(store)
    assert len({features(trial) for trial in rows.values()}) == len(rows) == 5
    read = {}
    for name, trial in rows.items():
        model = replace(trial.config, {"model.channels": 16, "model.num_queries": 4, "model.num_layers": 1}).model
        found = store_of(trial, store)
        sizes = FeatureSizes.from_store(found, model.needs())
        head = implementation_of(model)(model, sizes)
        batch = next(batches(found, range(2), 2, levels=sizes.levels))
        with torch.no_grad():
            assert torch.isfinite(head.probs(head(batch))).all()
        read[name] = [size.path for size in (sizes.text, sizes.audio) if size is not None]
    bound = "clips/audio/languagebind-audio/seconds/features"
    assert read["text LanguageBind"] == ["text/languagebind-text/tokens/features", "clips/audio/vggish/features"]
    assert read["both"] == ["text/flan-t5-base/tokens/features", bound]
    assert read["full"] == ["text/roberta-base/features", "clips/audio/vggish/features"]


def test_one_vector_is_read_as_a_token(store: FeatureStore) -> None:
    pooled = FeatureStore(store.location, use={"text": "flan-t5-base/pooled", "audio": "vggish"})
    batch = next(batches(pooled, range(2), 2))
    assert batch.text.shape == (2, 1, 32) and batch.valid.all()


def test_level_has_to_be_named_where_there_are_two(store: FeatureStore) -> None:
    several = FeatureStore(store.location, use={"text": "flan-t5-base", "audio": "vggish"})
    with pytest.raises(Exception, match=r"needs one; name it, as model\.text=flan-t5-base/pooled"):
        _ = several.text_path


def test_damaged_config_is_refused(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flan-t5-base").mkdir()
    (tmp_path / "flan-t5-base" / "config.json").write_text('{"d_model": "wide"}')
    write_benchmark(tmp_path / "bench", num_clips=1, seed=1, size=96, videos=False)
    capsys.readouterr()
    line = refusal(capsys, tmp_path / "bench", tmp_path / "store", "--streams", "flan-t5-base", "--weights", "random",
                   "--weights-dir", tmp_path)  # fmt: skip
    assert "config.json of" in line and "cannot be used" in line
