"""refavs-predict on real containers: it reads the same frames and audio as the store, and its videos can be played."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from experiments.predict.cli import main
from experiments.predict.overlay_video import write_overlay_video
from experiments.predict.trained_run import TrainedRun, checkpoint_of
from refavs.errors import ConfigError, WeightsError
from refavs.model.checkpoint import CONFIG, load_model, read_config, save_model
from refavs.model.heads.eemc import EEMC
from refavs.store import FeatureStore
from tests.experiments.small_run import SENTENCES, make_store, make_trial, video_of
from tests.extract.make_videos import write_video

# Warnings of MLflow and what it imports.
pytestmark = [
    pytest.mark.long, pytest.mark.usefixtures("small_networks"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def trial(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trial(store, tmp_path_factory.mktemp("trial"))


def test_command_writes_masks_and_a_video_with_sound(
    store: FeatureStore, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(video_of(store)), *SENTENCES, "--run", str(trial), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "RANDOM FEATURES" in capsys.readouterr().err
    told = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert [one["expression"] for one in told["predictions"]] == SENTENCES
    for number, one in enumerate(told["predictions"], start=1):
        masks = np.stack([np.asarray(Image.open(tmp_path / "out" / str(number) / f"{s}.png")) for s in range(10)])
        assert masks.shape == (10, 72, 128) and set(np.unique(masks)) <= {0, 255}
        assert (masks > 0).mean(axis=(1, 2)) == pytest.approx(one["shares"], abs=0.05)
        with av.open(str(tmp_path / "out" / str(number) / "overlay.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(frames) == 100 and frames[0].shape == (72, 128, 3)
            inside = masks[4] > 0
            red = frames[45][..., 0].astype(int) - frames[45][..., 2]
            assert red[inside].mean() > red[~inside].mean() + 40
        with av.open(str(tmp_path / "out" / str(number) / "overlay.mp4")) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            assert len(sound) == pytest.approx(480_000, rel=0.02) and np.abs(sound).max() > 0.1
    assert main([*command[:2], *command[3:]]) == 0  # the same folder is written again
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "prediction.json"]
    staging = tmp_path / "killed" / ".refavs.partial"  # what a kill in the first call leaves
    (staging / "1").mkdir(parents=True)
    assert main([*command[:-1], str(tmp_path / "killed")]) == 0
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["1", "2", "prediction.json"]


def test_values_that_are_not_finite_are_an_error_and_not_an_empty_video(
    store: FeatureStore, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = [str(video_of(store)), SENTENCES[0], "--out", str(tmp_path / "out")]
    model = load_model(trial / "checkpoint")
    with torch.no_grad():
        model.decoder.class_head.bias[0] = float("nan")
    save_model(tmp_path / "checkpoint", model, read_config(trial / "checkpoint")["facts"])
    assert main([*command, "--run", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "tensors in " in told and "hold values that are infinite or not a number (decoder.class_head.bias)" in told
    with monkeypatch.context() as patch:
        patch.setattr(EEMC, "next_piece", lambda model, batch, past, window: (batch, past))
        nan = torch.full((1, 10, 96, 96), float("nan"))
        patch.setattr(EEMC, "probs", lambda model, output, size: nan)
        assert main([*command, "--run", str(trial)]) == 2
        assert "the head predicts probabilities of 'the object on the left' that are not" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        run = TrainedRun(checkpoint_of(str(trial), None))
        reader: Any = run.streams.encoders["tiny-roberta"]
        encode = reader.encode
        patch.setattr(reader, "encode", lambda prepared, levels: [
            {path: array * np.nan if array.dtype.kind == "f" else array for path, array in one.items()}
            for one in encode(prepared, levels)
        ])  # fmt: skip
        with pytest.raises(WeightsError, match="compute values of 'the object on the left' that are infinite or not"):
            run.words(SENTENCES[0])
    assert not (tmp_path / "out").exists()


def test_each_mask_is_shown_where_pictures_are_rare_or_end(tmp_path: Path) -> None:
    times_s = [1.4, 1.9, 2.4, 5.6]  # from the first one on 0, 0.5, 1 and 4.2
    video = write_video(tmp_path / "rare.mkv", times_s=times_s, size=(64, 96), sound_codec=None)
    masks = np.zeros((10, 64, 96), bool)
    for second in range(10):
        masks[second, :, 9 * second : 9 * second + 9] = True
    folder = tmp_path / "12:30"
    folder.mkdir()
    write_overlay_video(folder / "overlay.mp4", video, masks, np.zeros(480_000, np.float32))
    with av.open(f"file:{folder / 'overlay.mp4'}") as container:
        shown = {
            float(frame.pts * frame.time_base): frame.to_ndarray(format="rgb24").astype(int)
            for frame in container.decode(video=0)
        }
    for second in range(10):
        time_s = max(time for time in shown if time <= second + 0.5)
        red = (shown[time_s][..., 0] - shown[time_s][..., 2]).mean(0)
        assert abs(int(red.argmax()) - (9 * second + 4)) < 6, (second, time_s)


def test_mlflow_run_is_fetched(trial: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(trial / "checkpoint"), "checkpoint")
    fetched = checkpoint_of(run_id, uri)
    assert (fetched / CONFIG).read_bytes() == (trial / "checkpoint" / CONFIG).read_bytes()
    with pytest.raises(ConfigError, match="has no checkpoint of run 'nope'"):
        checkpoint_of("nope", uri)
    with pytest.raises(ConfigError, match=r"there is no MLflow database .*gone\.db; give its address by"):
        checkpoint_of(run_id, f"sqlite:///{tmp_path / 'gone.db'}")
    assert not (tmp_path / "gone.db").exists()


def test_bad_input_is_one_line(
    store: FeatureStore, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    video, run = str(video_of(store)), ["--run", str(trial)]
    for arguments, told in (
        ([video, "a", "--run", str(tmp_path / "none")], "is not a folder; give the folder of a trial"),
        ([video, "a", "--run", str(tmp_path)], "has no checkpoint"),
        ([str(tmp_path / "clip.mp4"), "a", *run], "is cut off, damaged or not a video"),
        ([str(tmp_path / "clip.txt"), "a", *run], "is not named like a video"),
        ([video, "a", *run, "--out", str(tmp_path / "full")], "holds other files"),
        ([video, "a", *run, "--device", "cuda"], "--device cuda: "),
        ([video, " ", *run], "an EXPRESSION is empty"),
    ):
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("refavs-predict: ") and told in lines[0]


@pytest.mark.parametrize("stream", ["visual/tiny-swin/pixel_decoder", "audio/tiny-vggish", "text/tiny-roberta"])
def test_other_encoders_are_refused(store: FeatureStore, trial: Path, tmp_path: Path, stream: str) -> None:
    told = json.loads((trial / "checkpoint" / CONFIG).read_text())
    told["facts"]["encoders"][stream]["weights"] = "sha256:0"
    (tmp_path / "model.safetensors").write_bytes((trial / "checkpoint" / "model.safetensors").read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps(told))
    with pytest.raises(WeightsError, match=f"features of {stream} from other weights"):
        TrainedRun(tmp_path)
    del told["facts"]["encoders"]
    (tmp_path / CONFIG).write_text(json.dumps(told))
    with pytest.raises(WeightsError, match="does not say which encoders"):
        TrainedRun(tmp_path)
