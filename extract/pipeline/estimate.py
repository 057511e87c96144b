"""What an extraction would cost: counts and bytes exactly, seconds from a short calibration on this machine."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from tempfile import TemporaryDirectory

import numpy as np

from extract.encoders.presets import Encoders, Preset
from extract.encoders.visual import levels_of
from extract.media.clip import SAMPLE_RATE_HZ, Media, read_media
from extract.pipeline.dedup import AUDIO, VISUAL
from extract.pipeline.plan import ORDER, Item, array_specs
from extract.pipeline.ray_pool import Resources
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.temporary import temporary_folder
from refavs.store.format.schema import ArraySpec
from refavs.store.plan import ShardPlan, Shares, plan_shards
from refavs.store.writer import StoreWriter

START_S = 12.0  # Ray, and imports and weights in each worker
ONCE_S = 0.5  # beside so much the warming up of a call does not count
WHOLE_CLIP_S = 1.0  # a clip that takes longer is estimated from one frame


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of each stage, for one clip; `text` for one expression."""

    decode: float
    visual: float
    audio: float
    write: float
    text: float

    @property
    def of_clip(self) -> float:
        """Of one clip, one stage after the other."""
        return self.decode + self.visual + self.audio + self.write

    def beside(self, num_decoders: int) -> float:
        """Of one clip where so many threads decode, and one writes, beside the encoders: the longest of the three."""
        return max(self.visual + self.audio, self.decode / num_decoders, self.write)

    def render(self) -> str:
        """The stages on one line."""
        parts = [f"{field.name} {getattr(self, field.name):.3f} s" for field in fields(self)]
        return f"calibrated here: {', '.join(parts[:-1])} a clip; {parts[-1]} an expression"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a store lacks.

    Attributes:
        keys: by table; a clip that lacks a level counts.
        shards: by table.
        num_visual: clips whose frames have to be encoded; likewise `num_audio` of their sounds.
        num_sharing: clips whose frames or sound are another's.
        levels: visual levels that some clip lacks.
    """

    keys: dict[str, int]
    shards: dict[str, int]
    num_bytes: int
    num_visual: int
    num_audio: int
    num_sharing: int
    levels: tuple[str, ...]

    def seconds(self, each: Seconds, num_workers: int, num_decoders: int | None = None) -> float:
        """Wall-clock time with so many workers; nothing where nothing is missing.

        Args:
            num_decoders: threads of each worker that decode while a GPU encodes, and one more writes; the slowest of
                the three sets the pace. None where all of it shares the worker's processors.
        """
        if not sum(self.keys.values()):
            return 0.0
        encode_s = self.num_visual * each.visual + self.num_audio * each.audio + self.keys["text"] * each.text
        decode_s, write_s = self.keys["clips"] * each.decode, self.keys["clips"] * each.write
        if num_decoders is None:
            return START_S + (encode_s + decode_s + write_s) / num_workers
        return START_S + max(encode_s, decode_s / num_decoders, write_s) / num_workers


def missing_in(writer: StoreWriter, wanted: Mapping[str, Mapping[str, Item]], shares: Shares) -> Missing:
    """Plans a run without touching the store."""
    shared = {"clips": shares}
    plans = {
        table: plan_shards(writer.schema, table, writer.records(table), wanted[table], shared.get(table, {}))
        for table in ORDER
    }
    specs = writer.schema.specs
    paths = [plan.paths_of(key) for table in ORDER for plan in plans[table] for key in plan.keys]
    return Missing(
        keys={table: sum(len(plan.keys) for plan in plans[table]) for table in ORDER},
        shards={table: len(plans[table]) for table in ORDER},
        num_bytes=sum(specs[path].row_bytes for each in paths for path in each),
        num_visual=_count(plans["clips"], VISUAL), num_audio=_count(plans["clips"], AUDIO),
        num_sharing=sum(len(plan.shares) for plan in plans["clips"]),
        levels=levels_of(path for plan in plans["clips"] for path in plan.arrays),
    )


def _count(plans: Sequence[ShardPlan], start: str) -> int:
    return sum(any(path.startswith(f"{start}/") for path in plan.paths_of(key)) for plan in plans for key in plan.keys)


def clip_bytes(writer: StoreWriter) -> int:
    """Bytes of one clip's features in all arrays of the store."""
    return sum(spec.row_bytes for spec in writer.schema.tables["clips"].arrays)


def calibrate(
    preset: Preset, encoders: Encoders, clips: Iterable[Clip], levels: Sequence[str], resources: Resources
) -> Seconds:
    """Times one clip and one text, with as many threads as torch has now; the first readable clip is decoded.

    A processor encodes one frame, and the whole clip only if that is quick. A GPU encodes a whole batch of clips.

    Args:
        preset: sizes.
        encoders: those of the run, or the same with other weights, whose time is the same.
        clips: of the source.
        levels: visual levels to compute.
        resources: device and batch of the run.
    """
    media, decode_s = _decoded(preset, clips)
    for encoder in (encoders.visual, encoders.audio, encoders.text):
        for part in encoder.weight_parts():
            part.load()
    specs = [spec for spec in array_specs(preset, encoders)["clips"] if not levels or spec.path.startswith(AUDIO)
             or spec.path.split("/")[2] in levels]  # fmt: skip
    return Seconds(
        decode=decode_s, visual=_visual_s(encoders, media.frames, levels, resources) if levels else 0.0,
        audio=_seconds(lambda: encoders.audio.encode([encoders.audio.prepare(media.sound)])),
        write=_write_s(preset, encoders, specs),
        text=_seconds(lambda: encoders.text.encode([encoders.text.prepare("the object")])),
    )  # fmt: skip


def _visual_s(encoders: Encoders, frames: np.ndarray, levels: Sequence[str], resources: Resources) -> float:
    """Seconds of one clip in the visual encoder."""
    if resources.device != "cpu":
        batch = [frames] * resources.clips_per_pass
        return _seconds(lambda: encoders.visual.encode(batch, levels), once_s=math.inf) / len(batch)
    one_s = _seconds(lambda: encoders.visual.encode([frames[:1]], levels))
    if one_s > WHOLE_CLIP_S / len(frames):
        return one_s * len(frames)
    return _seconds(lambda: encoders.visual.encode([frames], levels))


def _seconds(call: Callable[[], object], once_s: float = ONCE_S) -> float:
    """The second of two calls, for the first one warms up; of a call that takes longer than `once_s`, the first."""
    started = time.perf_counter()
    call()
    if (first_s := time.perf_counter() - started) > once_s:
        return first_s
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _decoded(preset: Preset, clips: Iterable[Clip]) -> tuple[Media, float]:
    for clip in clips:
        started = time.perf_counter()
        try:
            return read_media(clip, preset.num_frames, preset.input_size), time.perf_counter() - started
        except DatasetError:
            continue
    frames = np.zeros((preset.num_frames, preset.input_size, preset.input_size, 3), np.uint8)
    sound = np.zeros(preset.num_frames * SAMPLE_RATE_HZ, np.float32)
    return Media(frames=frames, sound=sound, silent=True, repeated_from_s=None), 0.0


def _write_s(preset: Preset, encoders: Encoders, specs: Sequence[ArraySpec]) -> float:
    """Seconds to write and commit the arrays of one clip, in the folder of temporary files."""
    rng = np.random.default_rng(0)
    arrays = {spec.path: rng.standard_normal(spec.shape, np.float32).astype(spec.dtype) for spec in specs}
    with TemporaryDirectory(dir=temporary_folder()) as folder:
        writer = StoreWriter.open(
            folder, encoders=encoders.fingerprints(), source="calibration", num_frames=preset.num_frames,
            input_size=preset.input_size, specs={"clips": specs}, rows_per_shard={"clips": 1},
        )  # fmt: skip
        (plan,) = writer.plan("clips", ["clip"])
        started = time.perf_counter()
        with writer.shard(plan) as shard:
            shard.write("clip", arrays)
        return time.perf_counter() - started
