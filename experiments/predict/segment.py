"""A trained run on a video it has not seen: the run's own encoders, its head, and the probability of each pixel."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from extract.encoders.presets import Encoders, build_encoders, preset_named
from extract.encoders.weights import WeightSource
from extract.media.clip import Media, read_media
from extract.pipeline.plan import array_specs
from refavs.config import nearest
from refavs.data.batches import Batch, collate
from refavs.data.layouts import Clip
from refavs.data.layouts.videos import VIDEO_SUFFIXES
from refavs.errors import ConfigError, DatasetError, WeightsError
from refavs.files.typed_json import OddRecord, shaped
from refavs.finite import require_finite_features, require_finite_probs
from refavs.machine.accelerator import compute_fp32_exactly, require_usable
from refavs.model.checkpoint import CONFIG, load_model, read_config
from refavs.model.decoder import predict
from refavs.model.heads.eemc import EEMC
from refavs.store.reader import Sample, says_random

AT_ONCE = 8  # expressions


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run says of one expression about a video.

    Attributes:
        probs: probability of each pixel to belong to the referred object, one map per second, at the encoders' size.
    """

    expression: str
    probs: Float[Tensor, "t h w"]

    def masks(self, height: int, width: int) -> Bool[np.ndarray, "t height width"]:
        """Where the object is, at the size of the video."""
        probs = torch.nn.functional.interpolate(self.probs[None], (height, width), mode="bilinear")[0]
        return (probs > 0.5).numpy()

    @property
    def shares(self) -> list[float]:
        """For each second, the share of the frame that the object covers."""
        return (self.probs > 0.5).float().mean(dim=(1, 2)).tolist()


class _Extraction(TypedDict):
    preset: str
    weights: Literal["pretrained", "random"]
    seed: int
    precision: str


class _Facts(TypedDict):
    """What a checkpoint must tell of the features that it was trained on."""

    encoders: dict[str, dict[str, Any]]
    extraction: _Extraction


class Predictor:
    """A trained head with the encoders whose features it was trained on.

    Args:
        folder: a trial's checkpoint.
        weights_folder: pretrained weights, as for refavs-extract; None for the hub's cache or a download.
        device: where encoders and head run.

    Raises:
        ConfigError: the device cannot be used, or does not compute in the precision of the features.
        WeightsError: the checkpoint cannot be used, says nothing of its encoders, or was trained on the features of
            others than those found here.
    """

    def __init__(self, folder: Path, weights_folder: Path | None = None, device: str = "cpu") -> None:
        self.device = device
        compute_fp32_exactly()
        require_usable(device, "this machine")
        self.model: EEMC = load_model(folder).to(device)
        facts = read_config(folder)["facts"]
        try:
            shaped(facts, _Facts, "facts")
        except OddRecord as error:
            raise WeightsError(
                f"{folder / CONFIG} does not say which encoders its features came from ({error}); train again with "
                "this version"
            ) from error
        extraction = facts["extraction"]
        self.random_features = says_random(facts["encoders"])
        self.preset = preset_named(str(extraction.get("preset")))
        self.encoders = self._encoders(extraction, weights_folder)
        self._refuse_others(facts["encoders"], folder)
        self._refuse_other_sizes(folder)

    def read(self, video: Path) -> Media:
        """The frames and the sound that the encoders take of a video.

        Raises:
            DatasetError: the file is missing, damaged or no video.
        """
        if video.suffix.lower() not in VIDEO_SUFFIXES:
            raise DatasetError(
                f"{video} is not named like a video; {nearest(video.suffix, VIDEO_SUFFIXES)}, accepted: "
                f"{', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        clip = Clip(id=video.stem, video=video.absolute())
        return read_media(clip, self.preset.num_frames, self.preset.input_size)

    def predict(self, media: Media, expressions: Sequence[str]) -> Iterator[Prediction]:
        """The prediction for each expression; frames and sound are encoded once, expressions by a few at a time.

        Raises:
            WeightsError: the encoders compute features that are not finite.
            StatisticsError: so are the head's probabilities.
        """
        with torch.no_grad():
            maps, audio = self._encoded(media)
        for start in range(0, len(expressions), AT_ONCE):
            texts = expressions[start : start + AT_ONCE]
            with torch.no_grad():
                batch = self._batch(maps, audio, texts).to(self.device)
                probs = predict(self.model(batch), (self.preset.input_size, self.preset.input_size)).cpu()
            require_finite_probs(repr(texts[0]), probs.isfinite().all())
            for text, one in zip(texts, probs, strict=True):
                yield Prediction(expression=text, probs=one.clone())  # which alone stays in memory

    @property
    def _levels(self) -> tuple[str, ...]:
        """The visual level whose maps the head reads: clips/visual/LEVEL/map."""
        return (self.model.config.sizes.maps[0].path.split("/")[2],)

    def _encoders(self, extraction: Mapping[str, Any], weights_folder: Path | None) -> Encoders:
        weights = WeightSource(kind=extraction["weights"], seed=int(extraction["seed"]), folder=weights_folder)
        try:
            return build_encoders(self.preset, weights, self._levels, extraction["precision"], self.device)
        except ConfigError as error:
            raise ConfigError(f"the run was trained on features computed in {extraction['precision']}, which this "
                              "processor does not compute in; run refavs-predict on a machine with a GPU, or train on "
                              "a store of refavs-extract --precision fp32") from error

    def _refuse_others(self, trained_on: Mapping[str, Any], folder: Path) -> None:
        found = json.loads(json.dumps(self.encoders.fingerprints()))
        other = [stream for stream, facts in found.items() if facts != trained_on.get(stream)]
        if other:
            raise WeightsError(
                f"the head in {folder} was trained on features of {', '.join(other)} from other weights than those "
                "found here; give the folder of the weights that refavs-extract had by --weights-dir"
            )

    def _refuse_other_sizes(self, folder: Path) -> None:
        specs = {spec.path: spec for table in array_specs(self.preset, self.encoders).values() for spec in table}
        sizes = self.model.config.sizes
        wanted = {sizes.audio.path: [sizes.audio.channels], sizes.text.path: [sizes.text.channels],
                  **{size.path: [size.channels, size.height, size.width] for size in sizes.maps}}  # fmt: skip
        for path, size in wanted.items():
            made = specs[path].shape[-len(size):] if path in specs else ()
            if list(made) != size:
                raise WeightsError(f"{folder / CONFIG} names {path} of {size}, its encoders make {list(made)}; copy "
                                   "the checkpoint again or train again")

    def _encoded(self, media: Media) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The features of frames, by their paths, and of sound."""
        maps = self.encoders.visual.encode([media.frames], self._levels)[0]
        sound = self.encoders.audio.encode([self.encoders.audio.prepare(media.sound)])[0]
        require_finite_features("the video", {**maps, **sound})
        return maps, sound[self.model.config.sizes.audio.path]

    def _batch(self, maps: Mapping[str, np.ndarray], audio: np.ndarray, expressions: Sequence[str]) -> Batch:
        sizes = self.model.config.sizes
        texts = self.encoders.text.encode([self.encoders.text.prepare(text) for text in expressions])
        samples = []
        for text, encoded in zip(expressions, texts, strict=True):
            require_finite_features(repr(text), encoded)
            valid = next(array for path, array in encoded.items() if path != sizes.text.path)
            samples.append(Sample(
                visual={size.name: torch.from_numpy(maps[size.path]) for size in sizes.maps},
                audio=torch.from_numpy(audio), text=torch.from_numpy(encoded[sizes.text.path]),
                valid=torch.from_numpy(valid), mask=None, uid=text, clip_id="video", text_string=text, split="",
                dimension="",
            ))  # fmt: skip
        return collate(samples)


def checkpoint_of(run: str, tracking_uri: str | None) -> Path:
    """The checkpoint's folder: given itself, inside a trial's folder, or fetched from an MLflow run.

    Raises:
        ConfigError: no such folder, and no such run.
    """
    for folder in (Path(run), Path(run) / "checkpoint"):
        if (folder / CONFIG).is_file() and (folder / "model.safetensors").is_file():
            return folder
    if Path(run).exists():
        raise ConfigError(f"--run {run} holds no checkpoint; give a finished trial's folder, SWEEP/trials/KEY, or an "
                          "MLflow run's id with --tracking-uri")  # fmt: skip
    if tracking_uri is None:
        raise ConfigError(f"--run {run} is no folder; give a trial's folder, SWEEP/trials/KEY, or for an MLflow run's "
                          "id also --tracking-uri")  # fmt: skip
    from experiments.tracking.artifacts import download

    return download(tracking_uri, run, "checkpoint")
