"""What runs in a worker process: whole shards, from media to a commit.

Two jobs run in a worker at a time, each in a thread of its own. A pool of threads decodes ahead of both by a few clips;
one job at a time has the encoders; and while it has, the other one writes what it was given, or flushes and commits. So
the encoders wait for neither, across the end of a shard as well, and at no time do more clips' features exist than the
batch in the encoders and `SPARE_CLIPS` that wait to be written.
"""

import json
import os
import platform
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from extract.encoders.presets import Encoders, Preset
from extract.encoders.visual import levels_of
from extract.media.clip import read_media
from extract.media.notes import counted
from extract.pipeline.dedup import input_digests
from extract.pipeline.plan import Item, Job, Masks
from refavs.data.layouts import Clip
from refavs.errors import ConfigError, DatasetError, StoreError, WeightsError
from refavs.machine.accelerator import require_usable
from refavs.store.format.schema import pack_mask
from refavs.store.plan import ShardPlan
from refavs.store.shard_writer import ShardWriter
from refavs.store.writer import StoreWriter

STAGES = ("decode", "encode", "write", "commit", "waiting")
VISUAL, AUDIO = "clips/visual/", "clips/audio/"
SPARE_CLIPS = 2
TEXTS_PER_PASS = 64  # on a GPU
MOST_DECODERS = 16
SAME_FILES = "have the same files under the same path on every node, as a shared --weights-dir"
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of one shard.

    Attributes:
        num_done: keys committed.
        seconds: from the start of the job to its commit.
        stages_s: by name in `STAGES`. Decoding is done by threads beside the job's own; encoding holds the reading of
            weights in a worker's first job; `waiting` is the time without media, or without the turn at the encoders.
        failures: keys that could not be computed, with the reason.
        odd: clips by what is odd about them, names of `extract.media.notes`.
        error: what broke the whole shard; None where nothing did.
        trace: traceback of `error`.
        worker: node and process that did it.
    """

    table: str
    num_done: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    trace: str = ""
    worker: str = ""


class Stages:
    """Seconds spent in each stage of one job, by all of its threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the time inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started


class Turns:
    """One job at a time encodes, and none while another has more than `SPARE_CLIPS` clips of features to write."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._unwritten = 0

    @contextmanager
    def encoding(self, num_clips: int, stages: Stages) -> Iterator[None]:
        """The time in which a job has the encoders; it leaves the features of `num_clips` clips to be written."""
        with stages("waiting"), self._changed:
            self._changed.wait_for(lambda: not self._busy and self._unwritten <= SPARE_CLIPS)
            self._busy = True
        made = 0
        try:
            with stages("encode"):
                yield
            made = num_clips
        finally:
            with self._changed:
                self._busy = False
                self._unwritten += made
                self._changed.notify_all()

    def written(self, num_clips: int = 1) -> None:
        """The features of so many clips are gone from memory."""
        with self._changed:
            self._unwritten -= num_clips
            self._changed.notify_all()


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """One item as far as no encoder is needed.

    Attributes:
        failure: why it could not be decoded; nothing else is set then.
        arrays: those that need no encoder.
        frames: of a clip whose frames are to be encoded.
        sound: of a clip whose sound is to be encoded, as the encoder has prepared it.
        text: an expression, as the encoder has prepared it.
    """

    key: str
    failure: str = ""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    frames: UInt8[np.ndarray, "t h w 3"] | None = None
    sound: Any = None
    text: Any = None


class Worker:
    """Computes shards of one store with one set of encoders, whose weights it reads once.

    Args:
        location: path or URL of the store, which must exist.
        preset: sizes of frames and sounds.
        encoders: as they are sent to workers, without weights.
        num_threads: of the encoders on processors; as many others decode.
        batch_clips: clips in one pass through the visual encoder. They are neighbours in the plan of one shard, so that
            what is computed with what depends on the plan alone.
    """

    def __init__(
        self, location: str, preset: Preset, encoders: Encoders, num_threads: int = 1, batch_clips: int = 1
    ) -> None:
        self._location, self._preset, self._encoders = location, preset, encoders
        self._num_threads, self._batch_clips = num_threads, batch_clips
        self._pool = ThreadPoolExecutor(min(num_threads, MOST_DECODERS), "decode")
        self._clips_at_once = batch_clips
        self._turns = Turns()
        self._name = f"{platform.node()}:{os.getpid()}"
        self._texts_per_pass = 1 if encoders.device == "cpu" else TEXTS_PER_PASS

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter.attach(self._location)

    def ready(self) -> str:
        """Finds the store and the files of the weights; returns the name of this worker.

        Raises:
            ConfigError: the GPU cannot be used.
            StoreError: there is no store, as on a node that does not share the driver's folder.
            WeightsError: the files of the encoders are missing on this node, or are others than the driver's.
        """
        wanted = self._writer.schema.encoders
        try:
            found = json.loads(json.dumps(self._encoders.fingerprints()))
        except OSError as error:
            raise WeightsError(f"{error.filename}, which the driver has, cannot be read on node {platform.node()} "
                               f"({error.strerror}); {SAME_FILES}") from error
        other = [stream for stream in found if found[stream] != wanted.get(stream)]
        if other:
            raise WeightsError(f"node {platform.node()} has other weights or another tokenizer for {', '.join(other)} "
                               f"than the driver; {SAME_FILES}")
        require_usable(self._encoders.device, f"a worker on node {platform.node()}")
        return self._name

    def run(self, job: Job, condemned: Mapping[str, str] | None = None) -> JobResult:
        """Computes and commits one shard; an error that concerns the whole shard is returned, not raised.

        Args:
            job: the shard.
            condemned: keys that are failed without being touched, with the reason.

        Raises:
            AcceleratorError: the GPU has failed this process, which computes nothing on it any more.
        """
        # Per thread: Ray starts this one with the environment's count, which OpenMP would go by.
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        stages = Stages()
        failures: dict[str, str] = {}
        try:
            with self._writer.shard(job.shard) as shard:
                self._fill(shard, job, condemned or {}, failures, stages)
                filled = time.perf_counter()
        except torch.AcceleratorError:
            raise
        except Exception as error:  # the shard is the unit of failure: report it and go on with others
            trace = traceback.format_exc()
            # Without its traceback, whose frames would carry the shard's arrays to the driver.
            return JobResult(table=job.shard.table, error=error.with_traceback(None), trace=trace, worker=self._name)
        ended = time.perf_counter()
        stages.seconds["commit"] = ended - filled
        arrays, meta = (shard.record.arrays, shard.record.meta) if shard.record else ({}, {})
        return JobResult(
            table=job.shard.table, failures=failures, seconds=ended - started, stages_s=stages.seconds,
            num_done=len(job.shard.keys) - len(failures) if arrays else 0, worker=self._name,
            num_bytes=sum(arrays[path].num_bytes for path in job.shard.arrays if path in arrays),
            odd=counted(meta[key] for key in job.shard.keys if key in meta),
        )

    def probe(self, job: Job, key: str) -> None:
        """Computes one key and throws the result away: whether that kills the process is all that is asked."""
        stages = Stages()
        try:
            decoded = self._decode(job.shard, key, job.items[job.shard.keys.index(key)], stages)
            if not decoded.failure:
                self._turns.written(self._encode(job.shard, [decoded], stages)[1])
        except torch.AcceleratorError:
            raise
        except Exception:  # `run` meets the same error and reports it
            traceback.print_exc()

    def _fill(
        self, shard: ShardWriter, job: Job, condemned: Mapping[str, str], failures: dict[str, str], stages: Stages
    ) -> None:
        """Writes every row of the shard, or notes its failure."""
        plan = job.shard
        wanted = [(key, item) for key, item in zip(plan.keys, job.items, strict=True) if key not in condemned]
        window = 2 * self._per_pass(plan)
        with closing(ahead(self._pool, lambda pair: self._decode(plan, *pair, stages), wanted, window)) as decoding:
            for batch in self._batches(plan):
                ready: list[_Decoded] = []
                for key in batch:
                    if key in condemned:
                        decoded = _Decoded(key=key, failure=condemned[key])
                    else:
                        with stages("waiting"):
                            decoded = next(decoding)
                    if decoded.failure:
                        failures[key] = decoded.failure
                        shard.fail(key, decoded.failure)
                    else:
                        ready.append(decoded)
                self._write(shard, ready, failures, stages)

    def _batches(self, plan: ShardPlan) -> list[list[str]]:
        """Keys that go through the encoders together: neighbours by their rows.

        Rows and not places in `keys`, so that a level that is added to a shard with holes meets the same batches.
        """
        num_places = self._writer.schema.tables[plan.table].rows_per_shard
        pairs = zip(plan.keys, plan.rows, strict=True)
        groups = groupby(pairs, lambda pair: pair[1] % num_places // self._per_pass(plan))
        return [[key for key, _ in group] for _, group in groups]

    def _per_pass(self, plan: ShardPlan) -> int:
        """Items of a table that are encoded together."""
        return {"clips": self._batch_clips, "text": self._texts_per_pass}.get(plan.table, 1)

    def _write(
        self, shard: ShardWriter, batch: list[_Decoded], failures: dict[str, str], stages: Stages
    ) -> None:
        """Encodes a batch and writes its rows one by one, each freed before the next."""
        encoded, num_clips = self._encode(shard.plan, batch, stages)
        facts = deque((decoded.key, decoded.facts) for decoded in batch)
        batch.clear()  # pictures and sounds are not needed any more
        try:
            while encoded:
                (key, noted), arrays = facts.popleft(), encoded.popleft()
                with stages("write"):
                    try:
                        shard.write(key, arrays, noted)
                    except StoreError as error:
                        failures[key] = str(error)
                        shard.fail(key, str(error))
                del arrays
                if num_clips:
                    num_clips -= 1
                    self._turns.written()
        finally:
            self._turns.written(num_clips)

    def _encode(
        self, plan: ShardPlan, batch: Sequence[_Decoded], stages: Stages
    ) -> tuple[deque[dict[str, np.ndarray]], int]:
        """The arrays of each item of a batch, and how many clips are counted as not written yet."""
        found = [dict(decoded.arrays) for decoded in batch]
        clips = [decoded for decoded in batch if decoded.frames is not None or decoded.sound is not None]
        num_clips = len(clips)
        if clips or any(decoded.text is not None for decoded in batch):
            levels = levels_of(plan.arrays)
            with self._turns.encoding(num_clips, stages):
                for inputs, encode in (
                    ([decoded.frames for decoded in batch], lambda frames: self._maps(frames, levels)),
                    ([decoded.sound for decoded in batch], lambda sounds: self._encoders.audio.encode(sounds)),
                    ([decoded.text for decoded in batch], lambda texts: self._encoders.text.encode(texts)),
                ):
                    given = [number for number, item in enumerate(inputs) if item is not None]
                    encoded = encode([inputs[number] for number in given]) if given else []
                    for number, arrays in zip(given, encoded, strict=True):
                        found[number] |= arrays
        return deque(found), num_clips

    def _maps(self, frames: list[UInt8[np.ndarray, "t h w 3"]], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The visual maps of some clips; in two halves from the first time on that a GPU has no memory for all of them.

        Raises:
            ConfigError: the memory of the GPU does not suffice for the halves either.
        """
        size = self._clips_at_once
        try:
            return self._in_passes(frames, levels, size)
        except torch.OutOfMemoryError as error:
            if size > 1 and size == self._batch_clips:
                self._clips_at_once = -(-size // 2)
                with suppress(torch.OutOfMemoryError):
                    return self._in_passes(frames, levels, self._clips_at_once)
            raise ConfigError(
                f"the GPU of node {platform.node()} has no memory for {self._clips_at_once} clips of preset "
                f"{self._preset.name} in one pass ({str(error).splitlines()[0]}); end what else uses the GPU, or give "
                "--batch-clips 1, --precision bf16, or --device cpu"
            ) from error

    def _in_passes(
        self, frames: list[UInt8[np.ndarray, "t h w 3"]], levels: Sequence[str], size: int
    ) -> list[dict[str, np.ndarray]]:
        passes = [frames[start : start + size] for start in range(0, len(frames), size)]
        return [maps for each in passes for maps in self._encoders.visual.encode(each, levels)]

    def _decode(self, plan: ShardPlan, key: str, item: Item, stages: Stages) -> _Decoded:
        """Reads what one key is made from; what is wrong with it becomes its failure."""
        with stages("decode"):
            try:
                if isinstance(item, Clip):
                    return self._clip(plan, key, item)
                if isinstance(item, Masks):
                    return self._masks(key, item)
            except DatasetError as error:
                return _Decoded(key=key, failure=str(error))
            facts = {"text": item, "num_tokens": self._encoders.text.num_tokens(item)}
            return _Decoded(key=key, text=self._encoders.text.prepare(item), facts=facts)

    def _clip(self, plan: ShardPlan, key: str, clip: Clip) -> _Decoded:
        """Frames and sound of a clip, as far as its shard lacks what is made of them and no other clip shares it."""
        media = read_media(clip, self._preset.num_frames, self._preset.input_size)
        facts = {"silent": media.silent, "repeated_from_s": media.repeated_from_s, "num_frames": len(media.frames),
                 "source": clip.video.name if clip.video else clip.id,
                 **({"notes": ",".join(media.notes)} if media.notes else {}),
                 **input_digests(clip, self._preset.num_frames)}  # fmt: skip
        sees, hears = (any(path.startswith(start) for path in plan.paths_of(key)) for start in (VISUAL, AUDIO))
        return _Decoded(
            key=key, facts=facts, frames=media.frames if sees else None,
            sound=self._encoders.audio.prepare(media.sound) if hears else None,
        )

    def _masks(self, key: str, masks: Masks) -> _Decoded:
        stack = masks.read(self._preset.num_frames, self._preset.input_size)
        return _Decoded(key=key, arrays={"objects/mask": pack_mask(stack)})


def ahead(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T], window: int) -> Generator[_R]:
    """Results of `work`, in order; at most `window` items are begun before their results are taken."""
    left = iter(items)
    pending = deque(pool.submit(work, item) for item in islice(left, window))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
