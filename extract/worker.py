"""What runs in a worker process: one whole shard at a time, from media to a committed shard."""

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from extract.media import frame_size, input_digest, read_media
from extract.plan import Item, Job, Masks
from extract.presets import Encoders, Preset
from refavs.data.bench import Clip, read_mask
from refavs.errors import DatasetError, StoreError
from refavs.store.schema import pack_mask
from refavs.store.writer import ShardWriter, StoreWriter


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of one shard.

    Attributes:
        num_done: keys committed.
        failures: keys that could not be computed, with the reason.
        error: what broke the whole shard; None where nothing did.
        trace: traceback of `error`.
    """

    table: str
    num_done: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None
    trace: str = ""


class Worker:
    """Computes shards of one store with one set of encoders, whose weights it reads once."""

    def __init__(self, store: str, preset: Preset, encoders: Encoders, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._writer = StoreWriter.attach(store)
        self._preset, self._encoders = preset, encoders

    def run(self, job: Job) -> JobResult:
        """Computes and commits one shard; an error that concerns the whole shard is returned, not raised."""
        started = time.perf_counter()
        failures: dict[str, str] = {}
        try:
            with self._writer.shard(job.shard) as shard:
                for key, item in zip(job.shard.keys, job.items, strict=True):
                    reason = self._write(shard, key, item)
                    if reason:
                        shard.fail(key, reason)
                        failures[key] = reason
        except Exception as error:  # the shard is the unit of failure: report it and go on with others
            trace = traceback.format_exc()
            # Without its traceback, whose frames would carry the shard's arrays to the driver.
            return JobResult(table=job.shard.table, error=error.with_traceback(None), trace=trace)
        record = shard.record
        return JobResult(
            table=job.shard.table, failures=failures, seconds=time.perf_counter() - started,
            num_done=len(record.rows) if record else 0,
            num_bytes=sum(facts.num_bytes for facts in record.arrays.values()) if record else 0,
        )

    def _write(self, shard: ShardWriter, key: str, item: Item) -> str:
        """Computes one row; returns why that was not possible, or nothing."""
        try:
            arrays, facts = self._compute(item)
            shard.write(key, arrays, facts)
        except (DatasetError, StoreError) as error:
            return str(error)
        return ""

    def _compute(self, item: Item) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if isinstance(item, Clip):
            return self._clip(item)
        if isinstance(item, Masks):
            return self._masks(item)
        text = self._encoders.text
        return text.encode(item), {"text": item, "num_tokens": text.num_tokens(item)}

    def _clip(self, clip: Clip) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        media = read_media(clip, self._preset.num_frames, self._preset.input_size)
        arrays = self._encoders.visual.encode(media.frames) | self._encoders.audio.encode(media.sound)
        facts = {"silent": media.silent, "repeated_from_s": media.repeated_from_s, "num_frames": len(media.frames),
                 "source": clip.video.name if clip.video else clip.id,
                 "input": input_digest(clip, self._preset.num_frames)}  # fmt: skip
        return arrays, facts

    def _masks(self, masks: Masks) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        size = (self._preset.input_size, self._preset.input_size)
        expected = frame_size(masks.clip)
        seconds = range(self._preset.num_frames)
        stack = np.stack([read_mask(masks.folder, second, size, expected) for second in seconds])
        return {"objects/mask": pack_mask(stack)}, {}
