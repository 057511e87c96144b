"""What an extraction would cost: counts and bytes exactly, seconds from a short calibration on this machine."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from tempfile import TemporaryDirectory

import numpy as np

from extract.encoders.visual import levels_of
from extract.identity import AUDIO, VISUAL
from extract.media import SAMPLE_RATE_HZ, Media, read_media
from extract.plan import ORDER, Item, array_specs
from extract.presets import Encoders, Preset
from refavs.data.bench import Clip
from refavs.errors import DatasetError
from refavs.store.plan import ShardPlan, Shares, plan_shards
from refavs.store.writer import StoreWriter

START_S = 12.0  # Ray, and imports and weights in each worker


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

    @property
    def on_gpu(self) -> float:
        """Of one clip where decoding and writing go on beside the encoders: the longest of the three."""
        return max(self.visual + self.audio, self.decode, self.write)

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

    def seconds(self, each: Seconds, num_workers: int) -> float:
        """Wall-clock time with so many workers; nothing where nothing is missing."""
        if not sum(self.keys.values()):
            return 0.0
        work_s = (
            self.keys["clips"] * (each.decode + each.write) + self.num_visual * each.visual
            + self.num_audio * each.audio + self.keys["text"] * each.text
        )  # fmt: skip
        return START_S + work_s / num_workers


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


def calibrate(preset: Preset, encoders: Encoders, clips: Iterable[Clip], levels: Sequence[str]) -> Seconds:
    """Times one clip and one text, with as many threads as torch has now; the first readable clip is decoded.

    Args:
        preset: sizes.
        encoders: those of the run, or the same with random weights, whose time is the same.
        clips: of the source.
        levels: visual levels to compute.
    """
    media, decode_s = _decoded(preset, clips)
    arrays: dict[str, np.ndarray] = {}
    visual_s = _seconds(lambda: arrays.update(encoders.visual.encode([media.frames], levels)[0])) if levels else 0.0
    audio_s = _seconds(lambda: arrays.update(encoders.audio.encode([encoders.audio.prepare(media.sound)])[0]))
    return Seconds(
        decode=decode_s, visual=visual_s, audio=audio_s, write=_write_s(preset, encoders, arrays),
        text=_seconds(lambda: encoders.text.encode([encoders.text.prepare("the object")])),
    )


def _seconds(call: Callable[[], object]) -> float:
    """The second of two calls; the first one reads weights and warms up."""
    call()
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


def _write_s(preset: Preset, encoders: Encoders, arrays: dict[str, np.ndarray]) -> float:
    """Seconds to write and commit one clip, in the folder of temporary files."""
    specs = [spec for spec in array_specs(preset, encoders)["clips"] if spec.path in arrays]
    with TemporaryDirectory() as folder:
        writer = StoreWriter.open(
            folder, encoders=encoders.fingerprints(), source="calibration", num_frames=preset.num_frames,
            input_size=preset.input_size, specs={"clips": specs}, rows_per_shard={"clips": 1},
        )  # fmt: skip
        (plan,) = writer.plan("clips", ["clip"])
        started = time.perf_counter()
        with writer.shard(plan) as shard:
            shard.write("clip", arrays)
        return time.perf_counter() - started
