"""Sizes of the stored features, read from the store and never written as constants."""

from dataclasses import dataclass

from refavs.errors import StoreError
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
class FeatureSizes:
    """What the model has to know of a store.

    Attributes:
        maps: the visual maps the model reads, finest first: those of the pixel decoder, or those of the backbone.
    """

    audio: StreamSize
    text: StreamSize
    maps: tuple[MapSize, ...]

    @classmethod
    def from_store(cls, store: FeatureStore, trains_pixel_decoder: bool = False) -> "FeatureSizes":
        """Reads the sizes from the array descriptions of `store`.

        Args:
            trains_pixel_decoder: the model trains a pixel decoder, so that it reads the backbone's maps in any case.

        Raises:
            StoreError: the store lacks maps that the model reads.
        """
        paths = store.visual_paths()
        names = (MASKS, *reversed(LEVELS)) if MASKS in paths and not trains_pixel_decoder else STAGES
        missing = [name for name in names if name not in paths]
        if missing and trains_pixel_decoder:
            raise StoreError(
                f"store {store.location} has no maps {', '.join(missing)}, on which a pixel decoder is trained; add "
                "them by the same refavs-extract command with --levels backbone, or train none by --set "
                "model.trained=fusion+transformer_decoder"
            )
        if missing:
            raise StoreError(
                f"store {store.location} has no maps {', '.join(missing)}; EEMC reads "
                f"{', '.join((MASKS, *LEVELS))} of the pixel decoder or {', '.join(STAGES)} of the "
                "backbone; run refavs-extract with that level again"
            )

        def size(path: str) -> dict[str, int]:
            return dict(zip(store.specs[path].axes, store.specs[path].shape, strict=True))

        maps = []
        for name in names:
            shape = size(paths[name])
            maps.append(
                MapSize(name=name, path=paths[name], channels=shape["c"], height=shape["h"], width=shape["w"])
            )
        return cls(
            audio=StreamSize(path=store.audio_path, channels=size(store.audio_path)["c"]),
            text=StreamSize(path=store.text_path, channels=size(store.text_path)["c"]),
            maps=tuple(maps),
        )

    @property
    def has_mask_features(self) -> bool:
        """Whether the pixel decoder's maps are stored, so that the model needs none of its own."""
        return self.maps[0].name == MASKS

    @property
    def levels(self) -> list[str]:
        """The visual levels whose maps the model reads, as `batches` takes them."""
        return list(dict.fromkeys(size.path.split("/")[3] for size in self.maps))

    def map(self, name: str) -> MapSize:
        """Size of the map called `name`."""
        return next(size for size in self.maps if size.name == name)
