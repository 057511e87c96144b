"""Stores of another frame rate than one frame per second: which frame, mask and sound a step has."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from scipy.io import wavfile

from experiments.predict.segmenter import Segmenter
from extract.cli import main
from extract.encoders.hub_audio import PatchEncoder, SoundSettings, WindowEncoder
from extract.encoders.protocol import Encoder, EncoderSetup, Sound
from extract.encoders.streams import choose_streams
from extract.encoders.vggish import SAMPLE_RATE_HZ, VGGishEncoder, log_mel_patches
from extract.encoders.weights import WeightSource
from extract.media.clip import read_media
from extract.media.film_stream import Block
from extract.media.forms import Frames
from extract.media.pictures import PlacedPictures
from extract.pipeline.plan import Masks
from refavs.data.layouts import Clip, Object, Source
from refavs.data.layouts.protocol import expression_table
from refavs.errors import ConfigError, DatasetError
from refavs.steps import Steps
from refavs.store.format.schema import ArraySpec
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from tests.extract.command import refusal
from tests.extract.make_videos import gray_of, write_video
from tests.extract.plugin_command import plugin_command, train_a_step

FORM = Frames(size=8)
RANDOM = EncoderSetup(weights=WeightSource(kind="random"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return Clip(id="film", video=write_video(path, duration_s=5.0, size=(16, 32), grays_per_s=2, sound_codec=None))


@pytest.mark.parametrize(("steps", "expected", "repeated_from_s"), [
    (Steps(5, 2.0), [*range(10)], None), (Steps(6, 2.0), [*range(10), 9, 9], 5.0), (Steps(5), [0, 2, 4, 6, 8], None),
    (Steps(4, 0.5), [0, 4], None), (Steps(8, 0.5), [0, 4, 8, 9], 6.0), (Steps(6), [0, 2, 4, 6, 8, 9], 5),
])  # fmt: skip
def test_frame_is_the_first_of_its_step(
    film: Clip, steps: Steps, expected: list[int], repeated_from_s: float | None
) -> None:
    media = read_media(film, steps, [FORM], [])
    levels = np.array([gray_of(half) for half in range(10)])
    assert [int(abs(frame[:, 0].mean() - levels).argmin()) for frame in media.frames[FORM]] == expected
    assert media.repeated_from_s == repeated_from_s and type(media.repeated_from_s) is type(repeated_from_s)


class _Counted(PlacedPictures):
    def _pixels(self, frame: Any) -> list[Any]:
        return []


def test_slow_steps_allow_all_frames_of_a_fast_film() -> None:
    pictures, frame = _Counted(1, (), Fraction(1, 10)), av.VideoFrame(64, 64, "rgb24")
    for number in range(2400):
        pictures.add(frame, Fraction(number, 240))
    assert not pictures.done and pictures.reached < 1
    with pytest.raises(DatasetError, match="frames of this size per second"):
        for _ in range(8000):
            pictures.add(frame, Fraction(9))


def test_step_has_the_mask_of_its_time() -> None:
    masks = {number: Path(f"{number}.png") for number in (0, 2, 3, 6)}
    of = Masks(object=Object(clip_id="a", fid=0, masks=masks), clip=Clip(id="a", video=Path("a.mp4"), fps=4.0))
    assert of.of(Steps(2, 2.0)) == {0: masks[0], 1: masks[2], 3: masks[6]}
    assert of.labelled(Steps(2, 2.0)).tolist() == [True, True, False, True]
    assert of.labelled(Steps(2)).tolist() == [True, False]
    by_second = Masks(object=of.object, clip=Clip(id="a", video=Path("a.mp4")))
    assert by_second.labelled(Steps(4, 2.0)).tolist() == [True, False, False, False, True, False, True, False]
    short = Clip(id="a", frames=tuple(map(Path, "01234")), fps=4.0)
    null = Masks(object=Object(clip_id="a", fid=0, masks={}, null=True), clip=short)
    assert null.labelled(Steps(2, 2.0)).tolist() == [True, True, True, False]


# ------------------------------------------------------------------------------------------------------------- sound


def noise(seconds: int, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    return np.random.default_rng(0).normal(size=seconds * rate_hz).astype(np.float32)


@pytest.mark.parametrize("fps", [2.0, 0.5])
def test_vggish_hears_the_second_that_begins_with_a_step(fps: float) -> None:
    sound, steps = noise(4), Steps(4, fps)
    encoder = VGGishEncoder("vggish", EncoderSetup(weights=RANDOM.weights, fps=fps))
    patches = encoder.prepare(sound)
    assert len(patches) == len(steps) == encoder.arrays(4)[""][0].shape[0]
    for step, patch in enumerate(patches):
        start = round(steps.time_s(step) * SAMPLE_RATE_HZ)
        assert torch.equal(patch, log_mel_patches(sound[start:], 1)[0])


class Windows(WindowEncoder):
    """Hears a sound as it is."""

    rate_hz: ClassVar[int] = 8
    config: ClassVar[Any] = {"projection_dim": 8}  # pyright: ignore[reportIncompatibleVariableOverride]

    def front_end(self, sound: np.ndarray) -> np.ndarray:
        return sound[None, None]


class Columns(PatchEncoder):
    """A column every quarter of a second; the last one is padding."""

    config: ClassVar[Any] = {"hidden_size": 1}  # pyright: ignore[reportIncompatibleVariableOverride]

    def columns(self, outputs: Any) -> Any:
        return rearrange(outputs, "p n c -> p n 1 c")

    def middles_s(self, seconds: int) -> list[Any]:
        return [np.array([*np.arange(4 * seconds - 1) / 4 + 1 / 8, np.inf])]


def made(kind: type, fps: float) -> Any:
    settings = SoundSettings(config={}, repository="")
    return kind("x", settings, EncoderSetup(weights=RANDOM.weights, fps=fps), "MIT", 0)


def test_encoders_of_windows_and_of_whole_clips_follow_the_steps() -> None:
    sound, encoder = np.arange(16, dtype=np.float32), made(Windows, 2.0)
    inputs = encoder.inputs_of(sound, 2)
    assert inputs["windows"][:, 0, 0].tolist() == [
        [*range(8)], [*range(4, 12)], [*range(8, 16)], [12, 13, 14, 15, 0, 0, 0, 0]
    ]
    assert inputs["clip"].tolist() == [[[sound.tolist()]]]
    assert encoder.features("clip", torch.ones(1, 8), 2).shape == encoder.shape("clip", 2) == (4, 8)
    slow = made(Windows, 0.5).inputs_of(np.arange(32, dtype=np.float32), 4)
    assert slow["windows"][:, 0, 0].tolist() == [[*range(8)], [*range(16, 24)]]


def test_encoders_of_tokens_take_their_mean_after_a_step() -> None:
    outputs = torch.arange(8.0)[None, :, None]
    assert made(Columns, 1.0).features("seconds", outputs, 2).flatten().tolist() == [1.5, 5.0]
    assert made(Columns, 2.0).features("seconds", outputs, 2).flatten().tolist() == [1.5, 3.5, 5.0, 6.0]
    assert made(Columns, 8.0).features("seconds", outputs, 2).flatten().tolist()[-2:] == [6.0, 6.0]  # none begins there
    assert made(Columns, 2.0).shape("seconds", 2) == (4, 1)


@pytest.mark.parametrize("name", ["vggish-back-to-back"])
def test_encoder_with_a_row_for_each_second_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"audio/vggish-back-to-back has 10 rows for a clip of 10 s, and the clip has "
                                          r"20 steps at 2 frames per second; accepted: a store of --fps 1, or another"):
        choose_streams([name], Steps(10, 2.0), lambda name: RANDOM)
    facts = [streams.fingerprint(streams.streams["audio/vggish"]) for fps in (1.0, 2.0)
             for streams in [choose_streams(["vggish"], Steps(10, fps), lambda name: RANDOM)]]  # fmt: skip
    assert "fps" not in facts[0] and facts[1] == facts[0] | {"fps": 2.0}


def test_prediction_hears_at_the_rate_of_training() -> None:
    """A video at the rate of training is heard without a seam, one at twice the rate as two videos."""
    sound = noise(5, 8)
    run: Any = SimpleNamespace(streams=SimpleNamespace(steps=Steps(2, 2.0)), model=SimpleNamespace(remembers=True),
                               features=lambda media: media.sound)  # fmt: skip
    block = Block(first=0, frames={FORM: np.zeros((8, 8, 8, 3), np.uint8)}, sound={8: sound}, is_last=True)
    segmenter = Segmenter.__new__(Segmenter)
    segmenter.run = run
    assert segmenter._num_passes(2.0) == 1 and segmenter._num_passes(4.0) == 2 and segmenter._num_passes(1.0) == 1
    heard: dict[Any, Any] = segmenter._features(block, np.arange(4), 2.0)
    assert np.array_equal(heard[8], sound[:16])
    heard = segmenter._features(block, np.array([1, 3, 5, 7]), 4.0)  # of the second video, from 0.25 s on
    assert np.array_equal(heard[8], sound[2:18])
    heard = segmenter._features(block, np.array([0, 1]), 1.0)
    assert np.array_equal(heard[8], [*sound[:4], *sound[8:16], *np.zeros(4)])


# --------------------------------------------------------------------------------------------- from sources to a step


class Peaks(Encoder):
    """Sound: the loudest sample of the second after each step, at any frame rate."""

    name, modality, takes = "peaks", "audio", Sound(rate_hz=16_000)

    def __init__(self, setup: EncoderSetup) -> None:
        self.setup = setup

    def facts(self, level: str) -> dict[str, Any]:
        return {"name": "peaks", "weights": "none", "precision": "fp32", "preprocessing": "16 kHz"}

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        shape = (len(Steps(length, self.setup.fps)), 1)
        return {"": [ArraySpec(name="features", shape=shape, dtype="float32", axes=("t", "c"), statistics=True)]}

    def encode(self, batch: Any, levels: Any) -> list[Mapping[str, np.ndarray]]:
        return [{"features": np.array([[part.max()] for part in self._parts(sound)])} for sound in batch]

    def _parts(self, sound: np.ndarray) -> list[np.ndarray]:
        steps = Steps(len(sound) // 16_000, self.setup.fps)
        starts = [round(steps.time_s(step) * 16_000) for step in range(len(steps))]
        return [sound[start : start + 16_000] for start in starts]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two clips of 4 pictures per second, `long` of 2 s and `short` of 1.25 s; picture k has the gray 30 k."""
    clips = []
    for name, number in (("long", 8), ("short", 5)):
        folder = tmp_path / "kitchen" / name
        folder.mkdir(parents=True)
        for place in range(number):
            Image.new("RGB", (32, 32), (30 * place,) * 3).save(folder / f"{place}.png")
            mask = np.zeros((32, 32), np.uint8)
            mask[:, : 4 * place] = 255
            Image.fromarray(mask).save(folder / f"mask{place}.png")
        halves = np.repeat([0.1, 0.2, 0.4, 0.3], 8000)
        wavfile.write(folder / "sound.wav", 16_000, halves.astype(np.float32))
        clips.append(Clip(id=name, frames=tuple(folder / f"{place}.png" for place in range(number)), fps=4.0,
                          audio=folder / "sound.wav", root=tmp_path))  # fmt: skip
    objects = tuple(
        Object(clip_id=clip.id, fid=0, root=tmp_path, masks={
            number: clip.frames[0].with_name(f"mask{number}.png") for number in (0, 2, 3, 6)[: len(clip.frames) // 2]})
        for clip in clips
    )  # fmt: skip
    rows = [{"uid": f"{clip.id}_0", "clip_id": clip.id, "split": "fit", "text": "the pan", "fid": 0} for clip in clips]
    return Source(root=tmp_path / "kitchen", clips=tuple(clips), objects=objects, splits={"fit": "train"},
                  expressions=expression_table(rows), layout="kitchen")  # fmt: skip


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, source: Source, tmp_path: Path) -> list[str]:
    return [*plugin_command(monkeypatch, source, tmp_path / "store", peaks=Peaks), "--mask-size", "32"]


def test_store_of_two_frames_per_second_is_read_and_trained_on(
    capsys: pytest.CaptureFixture[str], command: list[str], tmp_path: Path
) -> None:
    assert main([*command, "--seconds", "2", "--fps", "2"]) == 0
    store = FeatureStore(command[1], use={"audio": "peaks"})
    assert (store.seconds, len(store.steps), store.attributes["fps"]) == (2, 4, 2.0)
    assert store.clips["seconds"].tolist() == [2.0, 1.5] and store.within([0, 1]).tolist() == [[True] * 4,
                                                                                                [True] * 3 + [False]]
    long, short = store[0], store[1]
    shown = (255 * long.visual["patches"][:, 0].float().mean((1, 2))).round().tolist()
    assert shown == [0, 60, 120, 180]
    assert (255 * short.visual["patches"][:, 0].float().mean((1, 2))).round().tolist() == [0, 60, 120, 120]
    assert long.audio.flatten().tolist() == pytest.approx([0.2, 0.4, 0.4, 0.3])
    quarters = FeatureStore(command[1], use={"audio": "quarters-48k"})[0].audio
    assert quarters.shape == (8, 8)  # four tokens a second, whatever the frame rate is
    assert long.labelled is not None and long.labelled.tolist() == [True, True, False, True]
    assert short.labelled is not None and short.labelled.tolist() == [True, True, False, False]
    assert long.mask is not None and long.mask[:, 0].sum(-1).tolist() == [0, 8, 0, 24]
    assert not verify(command[1]).damage
    mask = train_a_step(store).mask
    assert mask is not None and mask.shape == (2, 4, 32, 32)
    capsys.readouterr()
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out  # the store's own rate
    line = refusal(capsys, *command, "--fps", "1")
    assert "has clips with 2.0 frames per second, this run makes 1.0 frames per second; name another store" in line
    assert "has 4 pictures per second, not 3; accepted: --fps 4, or" in refusal(capsys, *command, "--fps", "3")


def test_store_of_one_frame_in_two_seconds(command: list[str]) -> None:
    assert main([*command, "--seconds", "4", "--fps", "0.5"]) == 0
    store = FeatureStore(command[1], use={"audio": "peaks"})
    assert len(store.steps) == 2 and store.clips["seconds"].tolist() == [2.0, 2.0]
    assert store[0].audio.flatten().tolist() == pytest.approx([0.2, 0.0])
    assert store[0].labelled is not None and store[0].labelled.tolist() == [True, False]
