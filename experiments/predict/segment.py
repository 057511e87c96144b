"""Applies a trained run to a new video: encodes it with the run's encoders and predicts with its head."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from experiments.predict.overlay_video import SOUND_HZ
from extract.encoders.networks import refuse_precision
from extract.encoders.protocol import EncoderSetup
from extract.encoders.stored_types import StoredTypes
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.media.clip import Media, read_media
from refavs.choices import PRECISIONS
from refavs.config import nearest
from refavs.data.batches import Batch, collate
from refavs.data.layouts import Clip
from refavs.data.layouts.videos import VIDEO_SUFFIXES
from refavs.errors import ConfigError, DatasetError, WeightsError
from refavs.files.typed_json import OddRecord, shaped
from refavs.finite import require_finite_features, require_finite_probs
from refavs.machine.accelerator import compute_fp32_exactly, require_usable
from refavs.model.checkpoint import CONFIG, load_model, read_config
from refavs.model.heads.protocol import Head
from refavs.store.format.array_spec import table_path
from refavs.store.format.schema import says_random
from refavs.store.reader import Sample

AT_ONCE = 8  # expressions per batch


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one expression about a video.

    Attributes:
        probs: probability that each pixel belongs to the referred object, one map per second, at the size of the masks
            that the run was trained on.
    """

    expression: str
    probs: Float[Tensor, "t h w"]

    def masks(self, height: int, width: int) -> Bool[np.ndarray, "t height width"]:
        """Masks of the object at the size of the video."""
        probs = torch.nn.functional.interpolate(self.probs[None], (height, width), mode="bilinear")[0]
        return (probs > 0.5).numpy()

    @property
    def shares(self) -> list[float]:
        """The fraction of the frame that the object covers in each second."""
        return (self.probs > 0.5).float().mean(dim=(1, 2)).tolist()


class _Facts(TypedDict):
    """The facts that a checkpoint must contain about its training features."""

    encoders: dict[str, dict[str, Any]]
    seconds: int
    mask_size: int


class Predictor:
    """A trained head with the encoders whose features it was trained on.

    Args:
        folder: a trial's checkpoint.
        weights_folder: pretrained weights, as for refavs-extract; None for the hub's cache or a download.
        device: where encoders and head run.

    Raises:
        ConfigError: the device cannot be used, or does not compute in the precision of the features.
        WeightsError: the checkpoint cannot be used, does not name its encoders, or was trained on features of other
            encoders than those found here.
    """

    def __init__(self, folder: Path, weights_folder: Path | None = None, device: str = "cpu") -> None:
        self.device = device
        compute_fp32_exactly()
        require_usable(device, "this machine")
        self.model: Head = load_model(folder).to(device)
        facts = read_config(folder)["facts"]
        try:
            shaped(facts, _Facts, "facts")
        except OddRecord as error:
            raise WeightsError(
                f"{folder / CONFIG} does not say which encoders its features came from ({error}); train again with "
                "this version"
            ) from error
        self.random_features = says_random(facts["encoders"])
        self.mask_size = int(facts["mask_size"])
        self.streams = self._streams(facts, weights_folder)
        self._refuse_others(facts["encoders"], folder)
        self._refuse_other_sizes(folder)

    def read(self, video: Path) -> Media:
        """Reads the frames and the audio that the encoders need from a video.

        Raises:
            DatasetError: the file is missing, damaged or not a video.
        """
        if video.suffix.lower() not in VIDEO_SUFFIXES:
            raise DatasetError(
                f"{video} is not named like a video; {nearest(video.suffix, VIDEO_SUFFIXES)}, accepted: "
                f"{', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        clip = Clip(id=video.stem, video=video.absolute())
        frames, rates_hz = self.streams.inputs()
        return read_media(clip, self.streams.seconds, frames, {*rates_hz, SOUND_HZ})

    def predict(self, media: Media, expressions: Sequence[str]) -> Iterator[Prediction]:
        """Yields the prediction for each expression; frames and audio are encoded once, expressions a few at a time.

        Raises:
            WeightsError: the encoders compute features that are not finite.
            StatisticsError: the head computes probabilities that are not finite.
        """
        with torch.no_grad():
            clip = self._encoded(media)
        for start in range(0, len(expressions), AT_ONCE):
            texts = expressions[start : start + AT_ONCE]
            with torch.no_grad():
                batch = self._batch(clip, texts).to(self.device)
                probs = self.model.probs(self.model(batch), (self.mask_size, self.mask_size)).cpu()
            require_finite_probs(repr(texts[0]), probs.isfinite().all())
            for text, one in zip(texts, probs, strict=True):
                yield Prediction(expression=text, probs=one.clone())  # releases the rest of the batch

    def _streams(self, facts: Mapping[str, Any], weights_folder: Path | None) -> StreamSet:
        """The streams that the head reads, with the encoders that it was trained on."""
        sizes = self.model.sizes
        read = (*sizes.maps, *(size for size in (sizes.audio, sizes.text) if size is not None))
        places = [size.path.removeprefix("clips/").split("/") for size in read]

        def setup(name: str) -> EncoderSetup:
            known = next((told for id, told in facts["encoders"].items() if id.split("/")[1:2] == [name]), {})
            kind, _, seed = str(known.get("weights")).partition(":")
            weights = WeightSource(folder=weights_folder)
            if kind == "random":
                weights = WeightSource(kind="random", seed=int(seed), folder=weights_folder)
            precision = PRECISIONS[PRECISIONS.index(known.get("precision", "fp32"))]
            try:
                refuse_precision(precision, self.device)
            except ConfigError as error:
                raise ConfigError(f"the run was trained on features computed in {precision}, which this processor does "
                                  "not compute in; run refavs-predict on a machine with a GPU, or train on a store of "
                                  "refavs-extract --precision fp32") from error
            return EncoderSetup(weights=weights, precision=precision, device=self.device)

        names = dict.fromkeys("/".join(place[1:-1]) for place in places)
        return choose_streams(list(names), int(facts["seconds"]), setup, types=StoredTypes(known=facts["encoders"]))

    def _refuse_others(self, trained_on: Mapping[str, Any], folder: Path) -> None:
        other = [id for id, stream in self.streams.streams.items()
                 if json.loads(json.dumps(self.streams.fingerprint(stream))) != trained_on.get(id)]  # fmt: skip
        if other:
            raise WeightsError(
                f"the head in {folder} was trained on features of {', '.join(other)} from other weights than those "
                "found here; pass the weights folder used for refavs-extract as --weights-dir"
            )

    def _refuse_other_sizes(self, folder: Path) -> None:
        made = {f"{table_path(id)}/{spec.name}": spec.shape
                for id, stream in self.streams.streams.items() for spec in stream.arrays}  # fmt: skip
        sizes = self.model.sizes
        wanted = {size.path: [size.channels] for size in (sizes.audio, sizes.text) if size is not None}
        wanted |= {size.path: [size.channels, size.height, size.width] for size in sizes.maps}
        for path, size in wanted.items():
            shape = list(made.get(path, ())[-len(size):])
            if shape != size:
                raise WeightsError(f"{folder / CONFIG} says {path} is {size}, its encoders give {shape}; copy the "
                                   "checkpoint again or train again")

    def _arrays(self, items: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
        """The arrays of one item from each encoder, by their paths in a store, rounded as that store rounds them."""
        found = {}
        for name, item in items.items():
            encoder = self.streams.encoders[name]
            streams = {id: stream for id, stream in self.streams.streams.items() if stream.encoder == name}
            levels = [stream.level for stream in streams.values()]
            (arrays,) = encoder.encode([encoder.prepare(item)], levels)
            for id, stream in streams.items():
                found |= {f"{table_path(id)}/{path}": array for path, array in stream.read_back(arrays).items()}
        require_finite_features(what, found)
        return found

    def _encoded(self, media: Media) -> dict[str, np.ndarray]:
        """The features of frames and audio."""
        encoders = self.streams.encoders.items()
        return self._arrays({name: media.taken(encoder.takes) for name, encoder in encoders
                             if encoder.modality != "text"}, "the video")  # fmt: skip

    def _batch(self, clip: Mapping[str, np.ndarray], expressions: Sequence[str]) -> Batch:
        """The input of the head; a modality that it does not read is a single zero."""
        sizes = self.model.sizes
        readers = [name for name, encoder in self.streams.encoders.items() if encoder.modality == "text"]
        samples = []
        for text in expressions:
            words, valid = np.zeros((1, 1), np.float32), np.ones(1, np.bool_)
            if sizes.text is not None:
                encoded = self._arrays(dict.fromkeys(readers, text), repr(text))
                words, valid = encoded[sizes.text.path], encoded[f"{sizes.text.path.rpartition('/')[0]}/valid"]
            sound = np.zeros((1, 1), np.float32) if sizes.audio is None else clip[sizes.audio.path]
            samples.append(Sample(
                visual={size.name: torch.from_numpy(clip[size.path]) for size in sizes.maps},
                audio=torch.from_numpy(sound), text=torch.from_numpy(words), valid=torch.from_numpy(valid), mask=None,
                labelled=None, uid=text, clip_id="video", text_string=text, split="", dimension="",
            ))  # fmt: skip
        return collate(samples)


def checkpoint_of(run: str, tracking_uri: str | None) -> Path:
    """The checkpoint's folder: `run` itself, a folder inside a trial's folder, or a download from an MLflow run.

    Raises:
        ConfigError: there is no such folder or run.
    """
    for folder in (Path(run), Path(run) / "checkpoint"):
        if (folder / CONFIG).is_file() and (folder / "model.safetensors").is_file():
            return folder
    if Path(run).exists():
        raise ConfigError(f"--run {run} has no checkpoint; give a finished trial's folder, SWEEP/trials/KEY, or an "
                          "MLflow run's id with --tracking-uri")  # fmt: skip
    if tracking_uri is None:
        raise ConfigError(f"--run {run} is not a folder; give the folder of a trial, SWEEP/trials/KEY, or for the id "
                          "of an MLflow run also --tracking-uri")  # fmt: skip
    from experiments.tracking.artifacts import download

    return download(tracking_uri, run, "checkpoint")
