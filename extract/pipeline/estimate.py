"""Cost of an extraction: exact counts and bytes, and seconds from a short calibration on this machine."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from extract.encoders.hub_text import ROWS
from extract.encoders.protocol import Encoder
from extract.encoders.streams import StreamSet
from extract.media.clip import Media, read_media
from extract.pipeline.plan import Job
from extract.pipeline.ray_pool import PoolResources
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.temporary import temporary_folder
from refavs.store.format.schema import OBJECTS, StoreSchema, StreamSpec
from refavs.store.writer import StoreWriter

START_S = 12.0  # Ray, and imports and weights in each worker
ONCE_S = 0.5  # for longer calls, the warm-up is negligible
WHOLE_CLIP_S = 1.0  # a clip that takes longer is estimated from one frame


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds of each stage.

    Attributes:
        decode: time per clip, like `write`.
        clip: time per clip in each encoder.
        text: time per expression in each encoder.
    """

    decode: float
    write: float
    clip: Mapping[str, float]
    text: Mapping[str, float]

    @property
    def of_clip(self) -> float:
        """Time per clip with sequential stages."""
        return self.decode + sum(self.clip.values()) + self.write

    def beside(self, num_decoders: int) -> float:
        """Time per clip with parallel stages (`num_decoders` threads decode, one writes): the longest of the three."""
        return max(sum(self.clip.values()), self.decode / num_decoders, self.write)

    def render(self) -> str:
        """The stages on one line."""
        clip = {"decode": self.decode, **self.clip, "write": self.write}
        parts = [", ".join(f"{name} {seconds:.3f} s" for name, seconds in each.items()) for each in (clip, self.text)]
        return f"calibrated here: {parts[0]} a clip" + (f"; {parts[1]} an expression" if self.text else "")


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Counts of what a store lacks.

    Attributes:
        units: units by kind.
        rows: rows by table, a stream or `objects`.
        shards: shards by table.
        inputs: clips or texts to encode, by encoder.
    """

    units: Counter[str]
    rows: Counter[str]
    shards: Counter[str]
    inputs: Counter[str]
    num_bytes: int

    def seconds(self, each: Seconds, num_workers: int, num_decoders: int | None = None) -> float:
        """Wall-clock time with `num_workers` workers; 0 if nothing is missing.

        Args:
            num_decoders: decoding threads of each worker while a GPU encodes and another thread writes; the slowest
                stage determines the speed. None if all stages share the worker's processors.
        """
        if not self.units.total():
            return 0.0
        encode_s = sum(self.inputs[name] * seconds for name, seconds in {**each.clip, **each.text}.items())
        decode_s, write_s = self.units["clips"] * each.decode, self.units["clips"] * each.write
        if num_decoders is None:
            return START_S + (encode_s + decode_s + write_s) / num_workers
        return START_S + max(encode_s, decode_s / num_decoders, write_s) / num_workers


def missing_of(jobs: Iterable[Job], schema: StoreSchema, streams: StreamSet) -> Missing:
    """Adds up the jobs of a run."""
    units, rows, shards, inputs = Counter(), Counter(), Counter(), Counter()
    num_bytes = 0
    for job in jobs:
        units[job.kind] += len(job.units)
        for shard in job.shards:
            rows[shard.table] += len(shard.keys)
            shards[shard.table] += 1
            num_bytes += len(shard.keys) * _row_bytes(schema.tables[shard.table])
        for unit in job.units:
            inputs.update({streams.streams[id].encoder for id in unit.keys if id != OBJECTS})
    return Missing(units=units, rows=rows, shards=shards, inputs=inputs, num_bytes=num_bytes)


def clip_bytes(schema: StoreSchema) -> int:
    """Size of one clip's features in all streams of a store, in bytes."""
    return sum(_row_bytes(spec) for id, spec in schema.streams.items() if not id.startswith("text/"))


def _row_bytes(table: StreamSpec) -> int:
    return sum(spec.row_bytes for spec in table.arrays)


def calibrate(streams: StreamSet, clips: Iterable[Clip], resources: PoolResources) -> Seconds:
    """Times one clip (the first readable one) and one text, with torch's current number of threads.

    A CPU encodes one frame, and the whole clip only if that is quick. A GPU encodes a whole batch of clips.

    Args:
        streams: the streams of the run; other weights do not change the time.
        clips: clips of the source.
        resources: device and batch size of the run.
    """
    media, decode_s = _decoded(streams, clips)
    of_clip, of_text = {}, {}
    for name, encoder in streams.encoders.items():
        for part in encoder.weight_parts():
            part.load()
        levels = list(dict.fromkeys(each.computed for each in streams.streams.values() if each.encoder == name))
        if encoder.modality == "text":
            of_text[name] = _encode_s(encoder, "the object", levels, ROWS)
        elif encoder.modality == "visual":
            of_clip[name] = _visual_s(encoder, media.taken(encoder.takes), levels, resources)
        else:
            of_clip[name] = _encode_s(encoder, media.taken(encoder.takes), levels)
    return Seconds(decode=decode_s, write=_write_s(streams), clip=of_clip, text=of_text)


def _encode_s(encoder: Encoder, item: Any, levels: Sequence[str], number: int = 1) -> float:
    """Seconds for one of `number` equal inputs."""
    return seconds_of(lambda: encoder.encode([encoder.prepare(item)] * number, levels)) / number


def _visual_s(encoder: Encoder, frames: np.ndarray, levels: Sequence[str], resources: PoolResources) -> float:
    """Seconds per clip in a visual encoder."""
    if resources.device != "cpu":
        batch = [encoder.prepare(frames)] * resources.clips_per_pass
        return seconds_of(lambda: encoder.encode(batch, levels), once_s=math.inf) / len(batch)
    one_s = _encode_s(encoder, frames[:1], levels)
    return one_s * len(frames) if one_s > WHOLE_CLIP_S / len(frames) else _encode_s(encoder, frames, levels)


def seconds_of(call: Callable[[], object], once_s: float = ONCE_S) -> float:
    """Time of the second of two calls, since the first warms up; or of the first if it takes longer than `once_s`."""
    started = time.perf_counter()
    call()
    if (first_s := time.perf_counter() - started) > once_s:
        return first_s
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _decoded(streams: StreamSet, clips: Iterable[Clip]) -> tuple[Media, float]:
    frames, rates_hz = streams.inputs()
    for clip in clips:
        started = time.perf_counter()
        try:
            return read_media(clip, streams.steps, frames, rates_hz), time.perf_counter() - started
        except DatasetError:
            continue
    return Media(
        frames={form: np.zeros((len(streams.steps), *form.shape), np.uint8) for form in frames},
        sound={rate_hz: np.zeros(streams.steps.seconds * rate_hz, np.float32) for rate_hz in rates_hz}, silent=True,
    ), 0.0  # fmt: skip


def _write_s(streams: StreamSet) -> float:
    """Seconds to write and commit the rows of one clip, in the temporary folder."""
    specs = {id: StreamSpec(fingerprint={}, arrays=stream.arrays, rows_per_shard=1)
             for id, stream in streams.of("visual", "audio").items()}  # fmt: skip
    arrays = {id: {spec.name: np.ones(spec.shape, spec.dtype) for spec in table.arrays} for id, table in specs.items()}
    with TemporaryDirectory(dir=temporary_folder()) as folder:
        writer = StoreWriter.open(folder, StoreSchema(
            streams=specs, source="calibration", seconds=streams.steps.seconds, fps=streams.steps.fps, mask_size=8,
            objects_per_shard=1,
        ))  # fmt: skip
        plans = [plan for id in specs for plan in writer.plan(id, [["clip"]]) if plan is not None]
        started = time.perf_counter()
        for plan in plans:
            with writer.shard(plan) as shard:
                shard.write("clip", arrays[plan.table])
        return time.perf_counter() - started
