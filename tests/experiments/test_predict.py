"""refavs-predict on real containers: it reads the same frames and audio as the store, and its videos can be played."""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from experiments.predict.cli import main
from experiments.predict.trained_run import TrainedRun, checkpoint_of
from refavs.data.rle import decoded
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
        assert (masks > 0).sum(axis=(1, 2)).tolist() == one["areas_px"] and len(one["object_probability"]) == 10
        text = (tmp_path / "out" / str(number) / "masks.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["time_s"] for line in lines] == list(range(10))
        assert np.array_equal([decoded(line["segmentation"]) for line in lines], masks > 0)
        with av.open(str(tmp_path / "out" / str(number) / "overlay.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(frames) == 100 and frames[0].shape == (72, 128, 3)
            inside = masks[4] > 0
            inside[50:] = False  # below is the sentence
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
            run.words(SENTENCES[:1])
    assert not (tmp_path / "out").exists()


def test_mlflow_run_is_fetched(trial: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from experiments.tracking.database import first_use

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with first_use(uri):
        client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(trial / "checkpoint"), "checkpoint")
    fetched = checkpoint_of(run_id, uri)
    assert (fetched / CONFIG).read_bytes() == (trial / "checkpoint" / CONFIG).read_bytes()
    client.create_registered_model("eemc")
    client.create_model_version("eemc", f"runs:/{run_id}/checkpoint", run_id)
    client.set_registered_model_alias("eemc", "best", "1")
    for model in ("models:/eemc@best", "models:/eemc/1"):
        assert (checkpoint_of(model, uri) / CONFIG).read_bytes() == (trial / "checkpoint" / CONFIG).read_bytes()
    with pytest.raises(ConfigError, match="has no model models:/eemc@other"):
        checkpoint_of("models:/eemc@other", uri)
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
    (tmp_path / "odd.csv").write_text("clip,text\na,b\n")
    (tmp_path / "empty.csv").write_text("video,expression\na.mp4,\n")
    video, run = str(video_of(store)), ["--run", str(trial)]
    for arguments, told in (
        ([video, "a", "--run", str(tmp_path / "none")], "is not a folder; give the folder of a trial"),
        ([video, "a", "--run", str(tmp_path)], "has no checkpoint"),
        ([str(tmp_path / "clip.mp4"), "a", *run], "is cut off, damaged or not a video"),
        ([str(tmp_path / "clip.txt"), "a", *run], "is not named like a video"),
        ([video, "a", *run, "--out", str(tmp_path / "full")], "holds other files"),
        ([video, "a", *run, "--device", "cuda"], "--device cuda: "),
        ([video, " ", *run], "an EXPRESSION is empty"),
        ([video, *run], "no EXPRESSION is given"),
        ([video, "a", *run, "--add-to-store"], "--add-to-store needs a store; name one by --store"),
        ([video, "a", *run, "--store", str(tmp_path / "none")], "none"),
        ([video, "a", *run, "--fps", "0"], "0 frames per second; accepted"),
        ([video, "a", *run, "--start", "3", "--end", "2"], "accepted: a start from 0 on, before the end"),
        ([video, "a", *run, "--start", "99"], "--start 99 lies behind the end of"),
        ([str(tmp_path / "full"), "a", *run], "holds no video"),
        (["--csv", str(tmp_path / "none.csv"), *run], "cannot be read"),
        (["--csv", str(tmp_path / "odd.csv"), *run], "has the columns clip, text; needed: video, expression"),
        (["--csv", str(tmp_path / "empty.csv"), *run], "line 2: the expression is empty"),
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
    facts = told["facts"]
    del told["facts"]["encoders"]
    for odd in (facts, json.loads((trial / "checkpoint" / CONFIG).read_text())["facts"] | {"mask_size": [96, 96, 96]}):
        (tmp_path / CONFIG).write_text(json.dumps(told | {"facts": odd}))
        with pytest.raises(WeightsError, match="does not say which encoders"):
            TrainedRun(tmp_path)


def test_several_videos_keep_what_is_finished_and_name_what_is_bad(
    store: FeatureStore, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copy(video_of(store), tmp_path / f"{name}.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "table.csv").write_text(
        f'video,expression,other\na.mp4,{SENTENCES[0]},\na.mp4,"{SENTENCES[1]}",\nbad.mp4,one,\nb.mp4,one,\n'
    )
    command = ["--run", str(trial), "--out", str(tmp_path / "out"), "--end", "2", "--no-overlay"]
    assert main(["--csv", str(tmp_path / "table.csv"), *command]) == 3
    told = capsys.readouterr()
    assert "bad.mp4 is cut off, damaged or not a video" in told.err and "finished before" not in told.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "out" / "a" / "2").iterdir()) == ["0.png", "1.png", "masks.jsonl"]
    before = (tmp_path / "out" / "a" / "prediction.json").stat().st_mtime_ns
    (tmp_path / "out" / "b" / "1" / "0.png").unlink()
    assert main(["--csv", str(tmp_path / "table.csv"), *command]) == 3
    out = capsys.readouterr().out
    assert out.count("finished before, kept") == 1 and (tmp_path / "out" / "b" / "1" / "0.png").is_file()
    assert (tmp_path / "out" / "a" / "prediction.json").stat().st_mtime_ns == before
    (tmp_path / "bad.mp4").unlink()
    assert main([str(tmp_path), "one", *command[:2], "--out", str(tmp_path / "folder"), *command[4:]]) == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a", "b"]


def test_features_of_a_store_are_taken_and_those_it_lacks_are_added(
    store: FeatureStore, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = shutil.copytree(store.location, tmp_path / "store")
    video = write_video(tmp_path / "other.mp4", size=(72, 128), duration_s=2)
    command = [str(video), SENTENCES[0], "--run", str(trial), "--no-overlay"]
    assert main([*command, "--out", str(tmp_path / "computed")]) == 0
    compute, times = TrainedRun.features, []
    monkeypatch.setattr(TrainedRun, "features", lambda run, media: times.append(1) or compute(run, media))
    for turn, more in enumerate((["--add-to-store"], [])):
        out = tmp_path / f"stored{turn}"
        assert main([*command, "--store", str(location), *more, "--out", str(out)]) == 0
        assert (out / "1" / "1.png").read_bytes() == (tmp_path / "computed" / "1" / "1.png").read_bytes()
    assert not times and "other" in FeatureStore(location).clips["id"].tolist()


def test_object_that_is_absent_has_empty_masks_and_a_long_sentence_is_cut(
    store: FeatureStore, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(trial / "checkpoint")
    with torch.no_grad():
        model.decoder.class_head.bias.copy_(torch.tensor([-20.0, 20.0]))
    save_model(tmp_path / "checkpoint", model, read_config(trial / "checkpoint")["facts"])
    out = tmp_path / "out"
    command = [str(video_of(store)), "the " * 200, "--run", str(tmp_path), "--out", str(out), "--end", "3"]
    assert main([*command, "--fps", "2", "--start", "1"]) == 0
    told = capsys.readouterr().out
    assert "nothing in the video; all masks are empty; too long, its end was not read" in told
    (one,) = json.loads((out / "prediction.json").read_text())["predictions"]
    assert one["absent"] and one["areas_px"] == [0, 0, 0, 0] and max(one["object_probability"]) < 0.5
    with av.open(str(out / "1" / "overlay.mp4")) as container:
        assert len(list(container.decode(video=0))) == 20
