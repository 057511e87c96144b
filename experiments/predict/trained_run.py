"""A trained head together with the encoders whose features it was trained on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from extract.encoders.networks import refuse_precision
from extract.encoders.protocol import EncoderSetup
from extract.encoders.stored_types import StoredTypes
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.media.clip import Media
from refavs.choices import Precision
from refavs.data.batches import Batch, collate
from refavs.errors import ConfigError, WeightsError
from refavs.files.typed_json import shaped
from refavs.finite import require_finite_features
from refavs.machine.accelerator import compute_fp32_exactly, require_usable
from refavs.model.checkpoint import CONFIG, checkpoint_digest, load_model, read_config
from refavs.model.feature_sizes import MAP_AXES
from refavs.model.heads.protocol import Head
from refavs.steps import Steps
from refavs.store.format.array_spec import table_path
from refavs.store.format.mask_rows import ToldSize, mask_shape, read_size
from refavs.store.format.schema import says_random
from refavs.store.reader import Sample


class _Fingerprint(TypedDict):
    """The part of a stream's fingerprint that says how its encoder computed; older stores lack it."""

    weights: NotRequired[str]
    precision: NotRequired[Precision]


class _Facts(TypedDict):
    """The facts that a checkpoint must contain about its training features."""

    encoders: dict[str, _Fingerprint]
    seconds: int
    fps: NotRequired[float]
    mask_size: ToldSize


class TrainedRun:
    """A trained head with the encoders whose features it was trained on.

    Attributes:
        random_features: whether at least one encoder has random weights, so that results say nothing about the method.
        mask_shape: height and width of the masks that the head was trained on.
        digest: of the head's weights.

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
        self.device, self.digest = device, checkpoint_digest(folder)
        compute_fp32_exactly()
        require_usable(device, "this machine")
        self.model: Head = load_model(folder).to(device)
        facts = read_config(folder)["facts"]
        try:
            shaped(facts, _Facts, "facts")
            self.mask_shape = mask_shape(read_size(facts["mask_size"]))
        except ValueError as error:
            raise WeightsError(
                f"{folder / CONFIG} does not say which encoders its features came from, or how large its masks are "
                f"({error}); train again with this version"
            ) from error
        self.random_features = says_random(facts["encoders"])
        self.streams = self._streams(facts, weights_folder)
        self._refuse_others(facts["encoders"], folder)
        self._refuse_other_sizes(folder)

    def features(self, media: Media) -> dict[str, np.ndarray]:
        """The features of a clip's frames and sound, by their paths in a store.

        Raises:
            WeightsError: the encoders compute features that are not finite.
        """
        (found,) = self._arrays({name: [media.taken(encoder.takes)] for name, encoder in self.streams.encoders.items()
                                 if encoder.modality != "text"}, ["the video"])  # fmt: skip
        return found

    def words(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The features of each expression, by their paths in a store.

        Raises:
            WeightsError: the encoder computes features that are not finite.
        """
        return self._arrays(dict.fromkeys(self._readers, texts), [repr(text) for text in texts])

    def is_cut(self, text: str) -> bool:
        """Whether an expression has more tokens than its encoder takes."""
        return any(self.streams.encoders[name].remarks([text]) for name in self._readers)

    def batch(
        self, clip: Mapping[str, np.ndarray], texts: Sequence[str], words: Sequence[Mapping[str, np.ndarray]]
    ) -> Batch:
        """The head's input for some expressions about one clip; a modality that it does not read is a single zero."""
        sizes, samples = self.model.sizes, []
        sound = np.zeros((1, 1), np.float32) if sizes.audio is None else clip[sizes.audio.path]
        for text, word in zip(texts, words, strict=True):
            features, valid = np.zeros((1, 1), np.float32), np.ones(1, np.bool_)
            if sizes.text is not None:
                features, valid = word[sizes.text.path], word[f"{sizes.text.path.rpartition('/')[0]}/valid"]
            samples.append(Sample(
                visual={size.name: torch.from_numpy(clip[size.path]) for size in sizes.maps},
                audio=torch.from_numpy(sound), text=torch.from_numpy(features), valid=torch.from_numpy(valid),
                mask=None, labelled=None, uid=text, clip_id="video", text_string=text, split="", dimension="",
            ))  # fmt: skip
        return collate(samples).to(self.device)

    @property
    def _readers(self) -> list[str]:
        """The encoders of the expression."""
        return [name for name, encoder in self.streams.encoders.items() if encoder.modality == "text"]

    def _streams(self, facts: Mapping[str, Any], weights_folder: Path | None) -> StreamSet:
        """The streams that the head reads, with the encoders that it was trained on."""
        sizes = self.model.sizes
        read = (*sizes.maps, *(size for size in (sizes.audio, sizes.text) if size is not None))
        places = [size.path.removeprefix("clips/").split("/") for size in read]

        def setup(name: str) -> EncoderSetup:
            fingerprints: dict[str, _Fingerprint] = facts["encoders"]
            known: _Fingerprint = next((one for id, one in fingerprints.items() if id.split("/")[1:2] == [name]), {})
            weights = WeightSource(folder=weights_folder)
            if random := re.fullmatch(r"random:(-?\d{1,20})", known.get("weights", "")):
                weights = WeightSource(kind="random", seed=int(random[1]), folder=weights_folder)
            precision = known.get("precision", "fp32")
            try:
                refuse_precision(precision, self.device)
            except ConfigError as error:
                raise ConfigError(f"the run was trained on features computed in {precision}, which this processor does "
                                  "not compute in; run refavs-predict on a machine with a GPU, or train on a store of "
                                  "refavs-extract --precision fp32") from error
            return EncoderSetup(weights=weights, precision=precision, device=self.device)

        names = dict.fromkeys("/".join(place[1:-1]) for place in places)
        steps = Steps(int(facts["seconds"]), facts.get("fps", 1.0))
        return choose_streams(list(names), steps, setup, types=StoredTypes(known=facts["encoders"]))

    def _refuse_others(self, trained_on: Mapping[str, Any], folder: Path) -> None:
        other = [id for id, stream in self.streams.streams.items()
                 if json.loads(json.dumps(self.streams.fingerprint(stream))) != trained_on.get(id)]  # fmt: skip
        if other:
            raise WeightsError(
                f"the head in {folder} was trained on features of {', '.join(other)} from other weights than those "
                "found here; pass the weights folder used for refavs-extract as --weights-dir"
            )

    def _refuse_other_sizes(self, folder: Path) -> None:
        made = {f"{table_path(id)}/{spec.name}": dict(zip(spec.axes, spec.shape, strict=True))
                for id, stream in self.streams.streams.items() for spec in stream.arrays}  # fmt: skip
        sizes = self.model.sizes
        wanted = {size.path: {"c": size.channels} for size in (sizes.audio, sizes.text) if size is not None}
        wanted |= {size.path: {axis: getattr(size, side) for side, axis in MAP_AXES.items()} for size in sizes.maps}
        for path, size in wanted.items():
            found = {axis: made[path].get(axis, 1) for axis in size} if path in made else {}
            if found != size:
                raise WeightsError(f"{folder / CONFIG} says {path} is {size}, its encoders give {found}; copy the "
                                   "checkpoint again or train again")

    def _arrays(self, items: Mapping[str, Sequence[Any]], what: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The arrays of each item from all encoders, by their paths in a store, rounded as that store rounds them."""
        found: list[dict[str, np.ndarray]] = [{} for _ in what]
        for name, each in items.items():
            encoder = self.streams.encoders[name]
            streams = {id: stream for id, stream in self.streams.streams.items() if stream.encoder == name}
            levels = [stream.level for stream in streams.values()]
            for item, arrays in zip(found, encoder.encode([encoder.prepare(one) for one in each], levels), strict=True):
                for id, stream in streams.items():
                    item |= {f"{table_path(id)}/{path}": array for path, array in stream.read_back(arrays).items()}
        for whose, item in zip(what, found, strict=True):
            require_finite_features(whose, item)
        return found


def checkpoint_of(run: str, tracking_uri: str | None) -> Path:
    """The checkpoint's folder: `run` itself, a folder inside a trial's folder, or a download from MLflow.

    Args:
        run: a folder, the id of an MLflow run, or a registered model, `models:/NAME@ALIAS`.

    Raises:
        ConfigError: there is no such folder, run or model.
    """
    for folder in (Path(run), Path(run) / "checkpoint"):
        if (folder / CONFIG).is_file() and (folder / "model.safetensors").is_file():
            return folder
    if Path(run).exists():
        raise ConfigError(f"--run {run} has no checkpoint; give a finished trial's folder, SWEEP/trials/KEY, or an "
                          "MLflow run's id with --tracking-uri")  # fmt: skip
    from experiments.tracking import user_settings

    tracking_uri = user_settings.address(tracking_uri)
    if tracking_uri is None:
        raise ConfigError(f"--run {run} is not a folder; give the folder of a trial, SWEEP/trials/KEY, or for the id "
                          "of an MLflow run or a registered model also --tracking-uri")  # fmt: skip
    from experiments.tracking.artifacts import download, run_of_model

    if run.startswith("models:/"):
        run = run_of_model(tracking_uri, run)
    return download(tracking_uri, run, "checkpoint")
