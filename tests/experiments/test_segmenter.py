"""`refavs.load(run).segment(...)`: pieces give what the whole gives, and the store's features give the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refavs
from experiments.predict.segmenter import Segmenter, masks_of
from experiments.predict.stored_features import StoredFeatures
from extract.media.film_stream import FilmStream
from refavs.data.batches import collate
from refavs.errors import ConfigError, StoreError
from refavs.model.decoder import predict
from refavs.steps import Steps
from refavs.store import FeatureStore
from tests.experiments.small_run import SENTENCES, make_store, make_trial, video_of
from tests.extract.make_videos import write_video

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def segmenter(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    segmenter = refavs.load(make_trial(store, tmp_path_factory.mktemp("trial")), device="cpu")
    with torch.no_grad():  # so that masks cover a part of each frame
        segmenter.run.model.decoder.class_head.bias.copy_(torch.tensor([-0.5, 0.5]))
    return segmenter


def noise(num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames that change, and a sound that does."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (num_frames, 6, 8, 3), np.uint8)
    frames = [np.asarray(Image.fromarray(frame).resize((64, 36))) for frame in small]
    return np.stack(frames), rng.uniform(-0.3, 0.3, num_frames * 16_000).astype(np.float32)


def test_probabilities_equal_those_from_the_store(store: FeatureStore, segmenter: Segmenter) -> None:
    found = list(segmenter.segment_video(FilmStream(video_of(store)), SENTENCES))
    with torch.no_grad():
        wanted = predict(segmenter.run.model(collate([store[0], store[1]])), (96, 96))
    for row in (0, 1):
        one = found[SENTENCES.index(store[row].text_string)]
        assert np.array_equal(one.object_probability, wanted[row].amax(dim=(1, 2)))
        assert np.array_equal(one.masks, masks_of(wanted[row], 72, 128))


def test_hundreds_of_sentences_are_predicted_by_a_few_at_a_time(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = segmenter.run.model, []
    head = model.next_piece
    monkeypatch.setattr(model, "next_piece", lambda batch, *past: sizes.append(len(batch)) or head(batch, *past))
    frames, waveform = noise(2)
    wanted = {one.expression: one for one in segmenter.segment(frames, waveform, SENTENCES)}
    texts = [SENTENCES[number % 2] for number in range(21)]
    for text, one in zip(texts, segmenter.segment(frames, waveform, texts), strict=True):
        assert one.expression == text and one.masks.shape == (2, 36, 64) and not one.truncated
        np.testing.assert_allclose(one.object_probability, wanted[text].object_probability, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 8, 8, 5]
    (cut,) = segmenter.segment(frames, waveform, ["the " * 200])
    assert cut.truncated


def test_memory_of_a_long_video_is_that_of_one_pass(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, waveform = noise(25)
    found = segmenter.segment(frames, waveform, SENTENCES)
    forgetful = segmenter.segment(frames, waveform, SENTENCES, memory=3)
    monkeypatch.setattr(segmenter.run, "streams", replace(segmenter.run.streams, steps=Steps(25)))
    for one, other, wanted in zip(found, forgetful, segmenter.segment(frames, waveform, SENTENCES), strict=True):
        assert wanted.masks.any() and np.array_equal(one.masks, wanted.masks)
        np.testing.assert_allclose(one.object_probability, wanted.object_probability, atol=1e-5)
        assert np.array_equal(one.masks[:4], other.masks[:4])
        assert not np.array_equal(one.masks[4:], other.masks[4:])


def test_features_of_a_store_are_used_and_added(
    store: FeatureStore, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = FilmStream(video_of(store))
    wanted = list(segmenter.segment_video(film, SENTENCES))
    location = str(shutil.copytree(store.location, tmp_path / "store"))
    stored = StoredFeatures(location, segmenter.run)
    other = write_video(tmp_path / "other.mp4", size=(72, 128), duration_s=4)
    assert stored.of(other) is None
    stored.add(other)
    assert len(FeatureStore(location)) == len(store) and StoredFeatures(location, segmenter.run).of(other) is not None
    computed = list(segmenter.segment_video(other, SENTENCES))
    with monkeypatch.context() as patch:
        patch.setattr(segmenter.run, "features", None)
        for one, two in zip(segmenter.segment_video(film, SENTENCES, stored=stored), wanted, strict=True):
            assert np.array_equal(one.masks, two.masks)
        for one, two in zip(segmenter.segment_video(other, SENTENCES, stored=stored), computed, strict=True):
            assert one.masks.shape == (4, 72, 128)
            np.testing.assert_allclose(one.object_probability, two.object_probability, atol=1e-5)
    tables = FeatureStore(location).clips
    (tmp_path / "second").mkdir()
    with pytest.raises(StoreError, match="holds features of other files under the same id for 'other'"):
        stored.add(write_video(tmp_path / "second" / "other.mp4", size=(72, 128), duration_s=3))
    assert FeatureStore(location).clips.equals(tables)
    monkeypatch.setattr(segmenter.run, "streams", replace(segmenter.run.streams, steps=Steps(5)))
    with pytest.raises(StoreError, match="has clips of 10 s than those that the run was trained on"):
        StoredFeatures(location, segmenter.run)


def test_more_pictures_per_second_are_videos_of_their_own(segmenter: Segmenter) -> None:
    frames, waveform = noise(24)
    (found,) = segmenter.segment(frames, waveform, SENTENCES[:1], frames_per_second=2)
    (even,) = segmenter.segment(frames[::2], waveform, SENTENCES[:1])
    (odd,) = segmenter.segment(frames[1::2], waveform[8_000:], SENTENCES[:1])
    assert np.array_equal(found.masks[::2], even.masks) and np.array_equal(found.masks[1::2], odd.masks)


def test_unusable_input_is_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    frames, waveform = noise(1)
    for wrong, told in (({"frames_per_second": 0}, "0 frames per second"), ({"memory": 0}, "memory is 0")):
        with pytest.raises(ConfigError, match=told):
            segmenter.segment(frames, waveform, SENTENCES, **wrong)
    with pytest.raises(ConfigError, match="an expression is empty"):
        segmenter.segment(frames, waveform, [" "])
    with pytest.raises(ConfigError, match="frames is empty"):
        segmenter.segment(frames[:0], waveform, SENTENCES)
    with pytest.raises(ConfigError, match="is not a folder"):
        refavs.load(tmp_path / "gone")
