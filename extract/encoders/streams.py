"""The streams of a run: which encoders it needs, and which of their levels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extract.encoders.protocol import Encoder, EncoderSetup, Frames, Sound
from extract.encoders.registry import make_encoder
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.store.format.schema import ArraySpec, StreamSpec

SHARD_BYTES = 2**28
MOST_CLIPS, MOST_TEXTS = 8, 256  # in a shard


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One level of one encoder.

    Attributes:
        encoder: its name in the store, `<encoder>` or `<encoder>@<name>`.
        level: empty where the encoder has but one.
        arrays: of one row.
    """

    id: str
    encoder: str
    level: str
    arrays: tuple[ArraySpec, ...]

    def part(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This level's part of what the encoder returned for an input, by the names of the arrays."""
        return {spec.name: arrays[f"{self.level}/{spec.name}".lstrip("/")] for spec in self.arrays}


@dataclass(frozen=True)
class StreamSet:
    """The streams that a run computes, with their encoders.

    Attributes:
        encoders: by name in the store; without weights, so that they can be sent to workers.
        streams: by id.
        seconds: steps in time of a clip.
        device: where the encoders compute.
    """

    encoders: Mapping[str, Encoder]
    streams: Mapping[str, Stream]
    seconds: int
    device: str = "cpu"

    def of(self, *modalities: str) -> dict[str, Stream]:
        """The streams of some modalities."""
        return {id: stream for id, stream in self.streams.items() if id.split("/")[0] in modalities}

    def only(self, ids: Collection[str]) -> "StreamSet":
        """The same with fewer streams."""
        streams = {id: stream for id, stream in self.streams.items() if id in ids}
        names = {stream.encoder for stream in streams.values()}
        encoders = {name: encoder for name, encoder in self.encoders.items() if name in names}
        return StreamSet(encoders, streams, self.seconds, self.device)

    def inputs(self) -> tuple[list[Frames], list[int]]:
        """The frames and the sample rates that the encoders take, each once."""
        takes = [encoder.takes for encoder in self.encoders.values()]
        frames = dict.fromkeys(each for each in takes if isinstance(each, Frames))
        return list(frames), list(dict.fromkeys(each.rate_hz for each in takes if isinstance(each, Sound)))

    def specs(self) -> dict[str, StreamSpec]:
        """What a store is opened with; reads the files of the weights to name them."""
        rows = self._rows_per_shard()
        return {
            id: StreamSpec(fingerprint=self.fingerprint(stream), arrays=stream.arrays, rows_per_shard=rows[id])
            for id, stream in self.streams.items()
        }

    def fingerprint(self, stream: Stream) -> dict[str, Any]:
        """The facts of a stream."""
        return dict(self.encoders[stream.encoder].facts(stream.level))

    def _rows_per_shard(self) -> dict[str, int]:
        """Streams of clips take as many rows as the one with the largest; a text stream what fits in a shard."""
        texts = self.of("text")
        fitting = {
            id: rows_within(SHARD_BYTES, sum(spec.row_bytes for spec in stream.arrays),
                            MOST_TEXTS if id in texts else MOST_CLIPS)
            for id, stream in self.streams.items()
        }  # fmt: skip
        num_clips = min((fitting[id] for id in self.streams if id not in texts), default=1)
        return {id: fitting[id] if id in texts else num_clips for id in self.streams}


def rows_within(shard_bytes: int, row_bytes: int, most: int) -> int:
    """Rows of a shard of about so many bytes: a power of two, at most `most`."""
    return min(most, 2 ** max(0, (shard_bytes // row_bytes).bit_length() - 1))


def choose_streams(
    names: Sequence[str], seconds: int, setup: Callable[[str], EncoderSetup], levels: Sequence[str] | None = None
) -> StreamSet:
    """The streams of the names given.

    Args:
        names: each `<encoder>[@<name>][/<level>]`; all levels of an encoder where none is named.
        seconds: steps in time of a clip.
        setup: of an encoder, given its name in the store.
        levels: replaces the levels in `names`; encoders with one level are not concerned.

    Raises:
        ConfigError: an encoder or a level that does not exist, or nothing at all.
    """
    if not names or (levels is not None and not levels):
        raise ConfigError(f"--{'streams' if not names else 'levels'} names none; see refavs-extract --list-encoders")
    encoders: dict[str, Encoder] = {}
    streams: dict[str, Stream] = {}
    device = "cpu"
    for whole in names:
        asked_name, _, level = whole.partition("/")
        name = asked_name.replace(":", "-")  # which no stream's name has
        chosen = setup(name)
        device = chosen.device
        encoder = encoders.setdefault(name, make_encoder(asked_name.partition("@")[0], chosen))
        arrays = encoder.arrays(seconds)
        asked = [level] if level else list(arrays)
        if levels is not None and "" not in arrays:
            asked = list(levels)
        for each in asked:
            if each not in arrays:
                raise ConfigError(f"encoder {name} has no level {each!r}; {nearest(each, filter(None, arrays))}")
            id = f"{encoder.modality}/{name}" + (f"/{each}" if each else "")
            streams[id] = Stream(id=id, encoder=name, level=each, arrays=tuple(arrays[each]))
    return StreamSet(encoders, streams, seconds, device)
