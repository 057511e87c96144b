"""Sizes of the stored features, read from the store and never written as constants."""

from dataclasses import dataclass
from typing import Any

from refavs.errors import StoreError

PIXEL_DECODER = "clips/visual/pixel_decoder"
BACKBONE = "clips/visual/backbone"
AUDIO = "clips/audio/vggish"
TEXT = "text/roberta/features"
MASKS = "mask_features"
LEVELS = ("s32", "s16", "s8")
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class MapSize:
    """One stored visual map of a frame: its name within its level, channels, height and width in its own pixels."""

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class FeatureSizes:
    """What the model has to know of a store.

    Attributes:
        maps: the visual maps the model reads: those of the pixel decoder where the store has them, else the backbone's.
        input_size: side of the frames the visual encoder saw and of the stored masks, in pixels.
    """

    audio_channels: int
    text_channels: int
    text_length: int
    num_frames: int
    input_size: int
    maps: tuple[MapSize, ...]

    @classmethod
    def from_store(cls, store: Any) -> "FeatureSizes":
        """Reads the sizes from the array descriptions of `store`.

        Raises:
            StoreError: the store lacks a stream that the model reads.
        """
        specs = store.specs
        level, names = PIXEL_DECODER, (MASKS, *LEVELS)
        if f"{PIXEL_DECODER}/{MASKS}" not in specs:
            level, names = BACKBONE, STAGES
        needed = [AUDIO, TEXT, *(f"{level}/{name}" for name in names)]
        missing = [path for path in needed if path not in specs]
        if missing:
            raise StoreError(
                f"the store has no {', '.join(missing)}; EEMC reads sound, text and the maps of the pixel decoder "
                "or of the backbone; run refavs-extract into a new store"
            )
        shapes = {path: dict(zip(specs[path].axes, specs[path].shape, strict=True)) for path in needed}
        maps = []
        for name in names:
            shape = shapes[f"{level}/{name}"]
            maps.append(MapSize(name=name, channels=shape["c"], height=shape["h"], width=shape["w"]))
        return cls(
            audio_channels=shapes[AUDIO]["c"], text_channels=shapes[TEXT]["c"], text_length=shapes[TEXT]["l"],
            num_frames=store.num_frames, input_size=store.input_size, maps=tuple(maps),
        )

    @property
    def level(self) -> str:
        """Path in the store of the visual level that the model reads."""
        return PIXEL_DECODER if any(size.name == MASKS for size in self.maps) else BACKBONE

    def map(self, name: str) -> MapSize:
        """Size of the map called `name`."""
        return next(size for size in self.maps if size.name == name)
