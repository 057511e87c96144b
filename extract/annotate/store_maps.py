"""SAM 2.1's features of a clip from a store, in place of a run of the encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extract.annotate.models import Maps
from extract.encoders.sam2 import Sam2Encoder
from extract.pipeline.content import content_of
from refavs.data.layouts import Clip
from refavs.errors import StoreError
from refavs.steps import Steps
from refavs.store.format.quantised import values_of
from refavs.store.reader import FeatureStore

COMPARED = ("weights", "config", "preprocessing", "input_size", "fit")  # facts of a fingerprint


@dataclass(frozen=True)
class StoredMaps:
    """The streams of one encoder in a store.

    Args:
        store: the store.
        paths: of the arrays, by path in the encoder.
    """

    store: FeatureStore
    paths: Mapping[str, str]

    @classmethod
    def open(cls, location: str, encoder: Sam2Encoder, levels: Sequence[str], arrays: Sequence[str]) -> "StoredMaps":
        """Opens a store that has the features of the encoder.

        Raises:
            StoreError: it lacks a level, or was made with other weights.
        """
        store = FeatureStore(location)
        for level in levels:
            id = f"visual/{encoder.name}/{level}"
            if id not in store.streams:
                raise StoreError(f"store {location} has no stream {id}; add it by refavs-extract SOURCE {location} "
                                 f"--streams {encoder.name}, or leave out --store")  # fmt: skip
            theirs, ours = store.schema.streams[id].fingerprint, encoder.facts(level)
            other = next((name for name in COMPARED if theirs.get(name) != ours[name]), None)
            if other is not None:
                raise StoreError(f"stream {id} of {location} has {other} {str(theirs.get(other))[:40]!r}, the tracker "
                                 f"{str(ours[other])[:40]!r}; take the same weights, or leave out --store")  # fmt: skip
        return cls(store, {path: f"clips/visual/{encoder.name}/{path}" for path in arrays})

    def of_clip(self, clip_id: str, source: Clip | None, frames: Clip, seconds: int) -> "ClipMaps":
        """The features of a clip.

        Args:
            source: the clip that the project was made from; None where it is gone.
            frames: the clip as the project has it.

        Raises:
            StoreError: the store has no such clip, or made it from other pictures.
        """
        places = self.store.clips["id"].tolist()
        if clip_id not in places or self.store.seconds < seconds or self.store.steps.rate != 1:
            raise StoreError(f"store {self.store.location} has no {seconds} s of this clip at 1 frame per second; "
                             "extract it there, or leave out --store")  # fmt: skip
        place = places.index(clip_id)
        stored = self.store.clips["frames"].iloc[place]
        if all(stored != content_of(clip, Steps(seconds)).frames for clip in (source, frames) if clip is not None):
            raise StoreError(f"store {self.store.location} has features of other pictures under this id; leave out "
                             "--store, or extract the project's source again")  # fmt: skip
        return ClipMaps(self.store, self.paths, place)


@dataclass(frozen=True)
class ClipMaps(Maps):
    """The features of one clip."""

    store: FeatureStore
    paths: Mapping[str, str]
    place: int

    def of(self, second: int) -> dict[str, np.ndarray]:
        """The arrays of a second."""
        found: dict[str, np.ndarray] = {}
        for name, path in self.paths.items():
            spec = self.store.specs[path]
            row = self.store.rows(path, [self.place])[0]
            parts: dict[str, Any] = {path: self.store.read(path, row, range(second, second + 1))}
            if spec.scale_path is not None:
                parts[spec.scale_path] = self.store.read(spec.scale_path, row)
            found[name] = values_of(spec, parts)[0].numpy()
        return found
