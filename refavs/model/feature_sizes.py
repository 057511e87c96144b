"""The features that a head reads from a store, and their sizes, which come from the store and never from a constant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refavs.errors import StoreError

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore

EXTENT = "extent"  # of an encoder that pads frames: the part of its map that the picture fills
MASKS = "mask_features"
LEVELS = ("s32", "s16", "s8")
MAP_AXES = {"channels": "c", "height": "h", "width": "w"}
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class MapSize:
    """One stored visual map of a frame: its name in a batch, its path in the store, channels, height and width.

    An array beside the maps that lacks one of these axes has the size 1 there.
    """

    name: str
    path: str
    channels: int
    height: int
    width: int

    @property
    def stream(self) -> str:
        """Id of the stream that contains the map."""
        return self.path.removeprefix("clips/").rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class StreamSize:
    """A stored stream of vectors: its path in the store, and the channels of a vector."""

    path: str
    channels: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The features that a head needs from a store.

    Attributes:
        maps: alternative sets of visual maps, each listed finest first. The head reads the first set the store has.
        audio: whether it reads audio features.
        text: whether it reads the features of the expression.
        sound_by_step: whether it needs exactly one audio vector per step, not several tokens.
        advice: what to do if the store lacks the maps; ends the error message that lists them.
        without_null: what it means for the head that no training expression refers to nothing; empty if it can do
            without such expressions.
    """

    maps: tuple[tuple[str, ...], ...]
    audio: bool = True
    text: bool = True
    sound_by_step: bool = False
    advice: str = "run refavs-extract with that level again"
    without_null: str = ""


@dataclass(frozen=True, kw_only=True)
class FeatureSizes:
    """Sizes of the features that a head reads from a store.

    Attributes:
        audio: None if the head reads no audio.
        text: None if it reads no expression.
        maps: visual maps, finest first.
    """

    audio: StreamSize | None
    text: StreamSize | None
    maps: tuple[MapSize, ...]

    @classmethod
    def from_store(cls, store: "FeatureStore", needs: Needs, head: str = "the head") -> "FeatureSizes":
        """The sizes of what `needs` names, from the array descriptions of `store`.

        Args:
            head: name of the head, for error messages.

        Raises:
            StoreError: the store lacks maps, or has several audio tokens a step where the head needs one.
        """
        paths = store.visual_paths()
        names = next((names for names in needs.maps if all(name in paths for name in names)), None)
        if names is None:
            missing = min(([n for n in names if n not in paths] for names in needs.maps), key=len)
            read = " or ".join(", ".join(names) for names in needs.maps)
            raise StoreError(f"store {store.location} has no maps {', '.join(missing)}; {head} reads {read}; "
                             f"{needs.advice}")  # fmt: skip
        if EXTENT not in names:
            _refuse_padded(store, [paths[name] for name in names], head)

        def size(path: str) -> dict[str, int]:
            return dict(zip(store.specs[path].axes, store.specs[path].shape, strict=True))

        if needs.audio and needs.sound_by_step and "t" not in store.specs[store.audio_path].axes:
            encoder = store.audio_path.split("/")[2]
            raise StoreError(f"the encoder {encoder!r} of store {store.location} has several tokens per step; {head} "
                             "reads one vector per step; choose another encoder with model.audio, or another head")

        def stream(path: str) -> StreamSize:
            return StreamSize(path=path, channels=size(path)["c"])

        shapes = [(name, paths[name], size(paths[name])) for name in names]
        return cls(
            audio=stream(store.audio_path) if needs.audio else None,
            text=stream(store.text_path) if needs.text else None,
            maps=tuple(MapSize(name=name, path=path, **{side: shape.get(axis, 1) for side, axis in MAP_AXES.items()})
                       for name, path, shape in shapes),
        )  # fmt: skip

    @property
    def paths(self) -> list[str]:
        """Paths of the arrays in the store."""
        return [size.path for size in (*self.maps, self.audio, self.text) if size is not None]

    @property
    def has_mask_features(self) -> bool:
        """Whether the maps come from a pixel decoder, in which case the head needs none of its own."""
        return any(size.name == MASKS for size in self.maps)

    @property
    def levels(self) -> list[str]:
        """Names of the maps as `batches` accepts them: level/map, or just the map for an encoder without levels."""
        return ["/".join(size.path.split("/")[3:]) for size in self.maps]

    def map(self, name: str) -> MapSize:
        """Size of the map called `name`."""
        return next(size for size in self.maps if size.name == name)


def _refuse_padded(store: "FeatureStore", paths: Sequence[str], head: str) -> None:
    """A mask covers the picture; a map that the picture fills only in part is misaligned with it."""
    for stream in dict.fromkeys(path.removeprefix("clips/").rpartition("/")[0] for path in paths):
        if (fit := store.schema.streams[stream].fingerprint.get("fit", "squash")) != "squash":
            raise StoreError(
                f"stream {stream} of store {store.location} has maps of frames fitted by {fit!r}; {head} reads maps "
                "that the whole picture fills; choose another encoder by model.visual, or a head that reads these"
            )
