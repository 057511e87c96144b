"""What a head reads of a store, and the sizes of that, which come from the store and never from a constant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refavs.errors import StoreError

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore

MASKS = "mask_features"
LEVELS = ("s32", "s16", "s8")
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class MapSize:
    """One stored visual map of a frame: its name in a batch, its path in the store, channels, height and width."""

    name: str
    path: str
    channels: int
    height: int
    width: int

    @property
    def stream(self) -> str:
        """Id of the stream that has the map."""
        return self.path.removeprefix("clips/").rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class StreamSize:
    """A stored stream of vectors: its path in the store, and the channels of a vector."""

    path: str
    channels: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a head reads of a store.

    Attributes:
        maps: names of visual maps, finest first. Of several such sets the head reads the first that the store has.
        audio: whether it reads the features of the sound.
        text: whether it reads the features of the expression.
        sound_by_second: whether it reads one vector of the sound for each second, and no finer tokens.
        padded: whether it also reads maps of which the picture fills a part, and finds that part itself.
        advice: what to do where the store lacks the maps, after a message that names these.
    """

    maps: tuple[tuple[str, ...], ...]
    audio: bool = True
    text: bool = True
    sound_by_second: bool = False
    padded: bool = False
    advice: str = "run refavs-extract with that level again"


@dataclass(frozen=True, kw_only=True)
class FeatureSizes:
    """The features of a store that a head reads.

    Attributes:
        audio: None where the head reads no sound.
        text: None where it reads no expression.
        maps: visual maps, finest first.
    """

    audio: StreamSize | None
    text: StreamSize | None
    maps: tuple[MapSize, ...]

    @classmethod
    def from_store(cls, store: "FeatureStore", needs: Needs, head: str = "the head") -> "FeatureSizes":
        """The sizes of what `needs` names, from the array descriptions of `store`.

        Args:
            head: its name, for the message.

        Raises:
            StoreError: the store lacks maps, or its sound has another form.
        """
        paths = store.visual_paths()
        names = next((names for names in needs.maps if all(name in paths for name in names)), None)
        if names is None:
            missing = min(([n for n in names if n not in paths] for names in needs.maps), key=len)
            read = " or ".join(", ".join(names) for names in needs.maps)
            raise StoreError(f"store {store.location} has no maps {', '.join(missing)}; {head} reads {read}; "
                             f"{needs.advice}")  # fmt: skip

        if not needs.padded:
            _refuse_padded(store, [paths[name] for name in names], head)

        def size(path: str) -> dict[str, int]:
            return dict(zip(store.specs[path].axes, store.specs[path].shape, strict=True))

        if needs.audio and needs.sound_by_second and "t" not in store.specs[store.audio_path].axes:
            encoder = store.audio_path.split("/")[2]
            raise StoreError(f"the encoder {encoder!r} of store {store.location} has several tokens a second; {head} "
                             "reads one vector a second; choose another by model.audio, or another head")

        def stream(path: str) -> StreamSize:
            return StreamSize(path=path, channels=size(path)["c"])

        shapes = [(name, paths[name], size(paths[name])) for name in names]
        return cls(
            audio=stream(store.audio_path) if needs.audio else None,
            text=stream(store.text_path) if needs.text else None,
            maps=tuple(MapSize(name=name, path=path, channels=shape["c"], height=shape["h"], width=shape["w"])
                       for name, path, shape in shapes),
        )  # fmt: skip

    @property
    def paths(self) -> list[str]:
        """The arrays, by their paths in the store."""
        return [size.path for size in (*self.maps, self.audio, self.text) if size is not None]

    @property
    def has_mask_features(self) -> bool:
        """Whether the maps are those of a pixel decoder, so that the head needs none of its own."""
        return any(size.name == MASKS for size in self.maps)

    @property
    def levels(self) -> list[str]:
        """The maps as `batches` takes them: level/map, or the map of an encoder without levels."""
        return ["/".join(size.path.split("/")[3:]) for size in self.maps]

    def map(self, name: str) -> MapSize:
        """Size of the map called `name`."""
        return next(size for size in self.maps if size.name == name)


def _refuse_padded(store: "FeatureStore", paths: Sequence[str], head: str) -> None:
    """A mask covers the picture; a map that the picture fills in part does not lie upon it."""
    for stream in dict.fromkeys(path.removeprefix("clips/").rpartition("/")[0] for path in paths):
        if (fit := store.schema.streams[stream].fingerprint.get("fit", "squash")) != "squash":
            raise StoreError(
                f"stream {stream} of store {store.location} has maps of frames fitted by {fit!r}; {head} reads maps "
                "that the whole picture fills; choose another encoder by model.visual, or a head that reads these"
            )
