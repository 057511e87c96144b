"""The streams of a run: the encoders it needs, and their levels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from extract.encoders.protocol import Encoder, EncoderSetup, Frames, Sound
from extract.encoders.registry import make_encoder
from extract.encoders.stored_types import StoredTypes
from refavs.choices import StoredType
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.model.feature_sizes import MASKS
from refavs.steps import Steps
from refavs.store.format.array_spec import ArraySpec
from refavs.store.format.quantised import stored_as, stored_rows, values_of
from refavs.store.format.schema import StreamSpec
from refavs.store.pooled import pooled, pooled_array, pooling_of

SHARD_BYTES = 2**28
MOST_CLIPS, MOST_TEXTS = 8, 256  # per shard


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One level of one encoder.

    Attributes:
        encoder: name of its encoder in the `StreamSet`.
        level: empty if the encoder has only one level.
        given: the arrays of one row, as the encoder returns them.
        dtype: the type in which they are stored; None stores them as they are.
        pools: the stream whose maps this one pools; see `refavs.store.pooled`.
    """

    id: str
    encoder: str
    level: str
    given: tuple[ArraySpec, ...]
    dtype: StoredType | None = None
    pools: "Stream | None" = None

    @property
    def computed(self) -> str:
        """The level that the encoder computes for it."""
        return self.level if self.pools is None else self.pools.level

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays of one row, as they are stored."""
        return stored_as(self.given, self.dtype)

    def part(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This level's arrays from the encoder's output for an input, by array name."""
        if self.pools is not None:
            return self._pooled(self.pools, arrays)
        return {spec.name: arrays[f"{self.level}/{spec.name}".lstrip("/")] for spec in self.given}

    def _pooled(self, source: "Stream", arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The pooled maps of what the store keeps of the encoder's output."""
        stored = {name: torch.from_numpy(row) for name, row in source.stored(source.part(arrays)).items()}
        scale = next(spec.scale for spec in source.arrays if spec.name == MASKS)
        means = pooled(stored[MASKS], None if scale is None else stored[scale], pooling_of(self.level) or 1)
        return {pooled_array(MASKS): means.numpy()}

    def stored(self, part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of `part` as they are stored."""
        return stored_rows(part, self.arrays)

    def read_back(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `part`, with the values that a reader of the store gets."""
        part = self.part(arrays)
        stored = self.stored(part)
        found = {spec.path: torch.from_numpy(stored[spec.name]) for spec in self.arrays}
        return {spec.name: values_of(spec, found).numpy() for spec in self.arrays if spec.name in part}


@dataclass(frozen=True)
class StreamSet:
    """The streams that a run computes, with their encoders.

    Attributes:
        encoders: encoders by name in the store, `<encoder>` or `<encoder>@<name>`; without weights, so that they can be
            sent to workers. Names that stand for the same encoder with the same setup share the first one's, so that
            an input is encoded once for all of their streams.
        streams: streams by id.
        steps: the steps of a clip.
        device: device of the encoders.
        clips_per_shard: of a new stream of clips; None for as many as make shards of about `SHARD_BYTES`.
    """

    encoders: Mapping[str, Encoder]
    streams: Mapping[str, Stream]
    steps: Steps
    device: str = "cpu"
    clips_per_shard: int | None = None

    def of(self, *modalities: str) -> dict[str, Stream]:
        """The streams of the given modalities."""
        return {id: stream for id, stream in self.streams.items() if id.split("/")[0] in modalities}

    def only(self, ids: Collection[str]) -> "StreamSet":
        """The subset with these streams."""
        streams = {id: stream for id, stream in self.streams.items() if id in ids}
        names = {stream.encoder for stream in streams.values()}
        encoders = {name: encoder for name, encoder in self.encoders.items() if name in names}
        return replace(self, encoders=encoders, streams=streams)

    def inputs(self) -> tuple[list[Frames], list[int]]:
        """The distinct frame formats and sample rates that the encoders take."""
        takes = [encoder.takes for encoder in self.encoders.values()]
        frames = dict.fromkeys(each for each in takes if isinstance(each, Frames))
        return list(frames), list(dict.fromkeys(each.rate_hz for each in takes if isinstance(each, Sound)))

    def specs(self) -> dict[str, StreamSpec]:
        """The stream specifications for opening a store; hashes the weights files."""
        rows = self._rows_per_shard()
        return {
            id: StreamSpec(fingerprint=self.fingerprint(stream), arrays=stream.arrays, rows_per_shard=rows[id])
            for id, stream in self.streams.items()
        }

    def fingerprint(self, stream: Stream) -> dict[str, Any]:
        """The facts of a stream."""
        if stream.pools is not None:
            return self.fingerprint(stream.pools) | {"pooled": pooling_of(stream.level)}
        facts = dict(self.encoders[stream.encoder].facts(stream.level))
        if self.steps.rate != 1 and stream.id.startswith("audio/") and any("t" in spec.axes for spec in stream.given):
            facts["fps"] = self.steps.fps  # the sound of a step depends on it, a frame does not
        return facts if stream.arrays == stream.given else facts | {"dtype": stream.dtype}

    def _rows_per_shard(self) -> dict[str, int]:
        """Rows per shard: all clip streams use the number for their largest rows; a text stream as many as fit."""
        texts = self.of("text")
        fitting = {
            id: rows_within(SHARD_BYTES, sum(spec.row_bytes for spec in stream.arrays),
                            MOST_TEXTS if id in texts else MOST_CLIPS)
            for id, stream in self.streams.items()
        }  # fmt: skip
        num_clips = self.clips_per_shard or min((fitting[id] for id in self.streams if id not in texts), default=1)
        return {id: fitting[id] if id in texts else num_clips for id in self.streams}


def rows_within(shard_bytes: int, row_bytes: int, most: int) -> int:
    """Number of rows in a shard of about `shard_bytes`: a power of two, at most `most`."""
    return min(most, 2 ** max(0, (shard_bytes // row_bytes).bit_length() - 1))


def choose_streams(
    names: Sequence[str], steps: Steps, setup: Callable[[str], EncoderSetup], levels: Sequence[str] | None = None,
    types: StoredTypes | None = None,
) -> StreamSet:  # fmt: skip
    """Creates the streams with the given names.

    Args:
        names: names of the form `<encoder>[@<name>][/<level>]`; without a level, all levels of the encoder.
        steps: the steps of a clip.
        setup: returns the setup of an encoder, given its name in the store; its `fps` is that of `steps`.
        levels: replaces the levels of visual encoders in `names`; has no effect on those with one level.
        types: the types in which the streams are stored; None stores what the encoders return.

    Raises:
        ConfigError: an encoder or level does not exist or does not make a row for each step, `types` names another
            stream, or no stream is named.
    """
    if not names or (levels is not None and not levels):
        raise ConfigError(f"--{'streams' if not names else 'levels'} names none; see refavs-extract --list-encoders")
    encoders: dict[str, Encoder] = {}
    made: dict[tuple[str, EncoderSetup], str] = {}
    streams: dict[str, Stream] = {}
    device, types = "cpu", types or StoredTypes()
    for whole in names:
        asked_name, _, level = whole.partition("/")
        name = asked_name.replace(":", "-")  # which no stream's name has
        chosen = replace(setup(name), fps=steps.fps)
        device = chosen.device
        base = asked_name.partition("@")[0]
        own = made.setdefault((base.replace(":", "-"), chosen), name)
        encoder = encoders[own] if own in encoders else encoders.setdefault(own, make_encoder(base, chosen))
        arrays = encoder.arrays(steps.seconds if encoder.modality == "audio" else len(steps))
        asked = [level] if level else list(arrays)
        if levels is not None and encoder.modality == "visual" and "" not in arrays:
            asked = list(levels)
        for each in asked:
            stream = _stream(f"{encoder.modality}/{name}", own, each, arrays, types)
            _refuse_other_steps(stream, steps)
            streams[stream.id] = stream
    types.refuse_unused(streams)
    return StreamSet(encoders, streams, steps, device)


def _refuse_other_steps(stream: Stream, steps: Steps) -> None:
    """Checks that each array along time has a row for each step."""
    for spec in stream.given:
        num_rows = spec.length("t")
        if num_rows is not None and num_rows != len(steps):
            raise ConfigError(f"{stream.id} has {num_rows} rows for a clip of {steps.seconds} s, and the clip has "
                              f"{len(steps)} steps at {steps.fps:g} frames per second; accepted: a store of --fps "
                              f"{num_rows / steps.seconds:g}, or another encoder")  # fmt: skip


def _stream(
    name: str, encoder: str, level: str, arrays: Mapping[str, Sequence[ArraySpec]], types: StoredTypes
) -> Stream:
    """A level of an encoder, or the pooled mask features of the level that has them.

    Args:
        name: modality and name in the store.
        encoder: name of its encoder in the `StreamSet`.

    Raises:
        ConfigError: it has no such level, or the squares of a pooled one do not divide its mask features.
    """
    id = f"{name}/{level}".rstrip("/")
    masked = next((each for each, specs in arrays.items() if any(spec.name == MASKS for spec in specs)), None)
    if level not in arrays and masked is not None and (by := pooling_of(level)):
        source = _stream(name, encoder, masked, arrays, types)
        seconds, channels, height, width = next(spec.shape for spec in source.given if spec.name == MASKS)
        if height % by or width % by:
            raise ConfigError(f"level {level} of {name} pools {height} x {width} mask features, which {by} "
                              "does not divide; name a common divisor, as the heads' model.visual_downsample")
        spec = ArraySpec(name=pooled_array(MASKS), shape=(seconds, channels, height // by, width // by),
                         dtype="float32", axes=("t", "c", "h", "w"))  # fmt: skip
        return Stream(id=id, encoder=encoder, level=level, given=(spec,), pools=source)
    if level not in arrays:
        own = name.partition("/")[2]
        raise ConfigError(f"encoder {own} has no level {level!r}; {nearest(level, filter(None, arrays))}")
    return Stream(id=id, encoder=encoder, level=level, given=tuple(arrays[level]), dtype=types.of(id))
