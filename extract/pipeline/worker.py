"""The worker process: runs whole jobs, from media to the commits of their shards.

A worker runs two jobs at a time, each in its own thread. A thread pool decodes a few clips ahead for both. One job at a
time uses the encoders, while the other one writes, flushes or commits. So the encoders never wait, not even at the end
of a job, and the only features in memory are those of the batch in the encoders and of `SPARE_CLIPS` clips that wait to
be written.
"""

import json
import os
import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from extract.encoders.protocol import Frames, Sound, Text
from extract.encoders.streams import MOST_TEXTS, StreamSet
from extract.media.clip import Media, read_media
from extract.pipeline.plan import Job, Kind, Masks, Unit
from extract.pipeline.turns import Stages, Turns
from refavs.data.layouts import Clip
from refavs.errors import ConfigError, DatasetError, StoreError, WeightsError
from refavs.machine.accelerator import require_usable
from refavs.steps import Steps
from refavs.store.format.mask_rows import row_of_mask
from refavs.store.format.schema import OBJECTS
from refavs.store.shard_writer import ShardWriter
from refavs.store.writer import StoreWriter

TEXTS_PER_PASS = 64  # on a GPU; on a CPU the encoder gets all texts of a job and groups them by length
MOST_DECODERS = 16
SAME_FILES = "provide the same files under the same path on every node, e.g. in a shared --weights-dir"
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The result of one job.

    Attributes:
        num_done: number of units computed.
        seconds: time from the start of the job to its last commit.
        stages_s: seconds by name in `JOB_STAGES`. Decoding runs in other threads than the job; encoding includes
            reading the weights in a worker's first job; `waiting` is time without media or access to the encoders.
        encoded: per encoder, the number of inputs (frames, sounds of clips, or texts) and the seconds for them.
        failures: units that could not be computed, with the reason.
        error: the error that broke the whole job; None if it did not break.
        trace: traceback of `error`.
        worker: node and process that ran it.
    """

    kind: Kind
    num_done: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    encoded: dict[str, tuple[int, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None
    trace: str = ""
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """A decoded unit, before encoding.

    Attributes:
        failures: reasons of failed decoding, by modality or `objects`.
        arrays: arrays that need no encoder, by table.
        inputs: prepared input of each encoder.
        facts: facts to note with its rows, by modality.
    """

    unit: Unit
    failures: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


class Worker:
    """Computes jobs for one store with one set of encoders, whose weights it reads once.

    Args:
        location: path or URL of the store, which must exist.
        streams: the streams with their encoders, without weights.
        num_threads: number of encoder threads on a CPU, and of decoding threads.
        batch_clips: number of clips in one pass through the visual encoders. They are neighbours in a job, so the
            composition of batches depends only on the plan.
    """

    def __init__(self, location: str, streams: StreamSet, num_threads: int = 1, batch_clips: int = 1) -> None:
        self._location, self._streams = location, streams
        self._num_threads, self._batch_clips = num_threads, batch_clips
        self._pool = ThreadPoolExecutor(min(num_threads, MOST_DECODERS), "decode")
        self._clips_at_once = batch_clips
        self._turns = Turns()
        self._name = f"{platform.node()}:{os.getpid()}"
        per_pass = MOST_TEXTS if streams.device == "cpu" else TEXTS_PER_PASS
        self._per_pass: dict[Kind, int] = {"clips": batch_clips, "text": per_pass, "objects": 1}

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter.attach(self._location)

    def ready(self) -> str:
        """Finds the store and the files of the weights; returns the name of this worker.

        Raises:
            ConfigError: the GPU cannot be used.
            StoreError: there is no store, e.g. on a node that does not share the driver's folder.
            WeightsError: the weights files are missing on this node, or differ from the driver's.
        """
        wanted = self._writer.schema.streams
        try:
            found = {id: json.loads(json.dumps(self._streams.fingerprint(stream)))
                     for id, stream in self._streams.streams.items()}  # fmt: skip
        except OSError as error:
            raise WeightsError(f"{error.filename}, which the driver has, cannot be read on node {platform.node()} "
                               f"({error.strerror}); {SAME_FILES}") from error
        other = [id for id in found if id not in wanted or found[id] != wanted[id].fingerprint]
        if other:
            raise WeightsError(f"node {platform.node()} has other weights or another tokenizer for {', '.join(other)} "
                               f"than the driver; {SAME_FILES}")
        require_usable(self._streams.device, f"a worker on node {platform.node()}")
        return self._name

    def run(self, job: Job, condemned: Mapping[str, str] | None = None) -> JobResult:
        """Computes a job and commits its shards; an error of the whole job is returned, not raised.

        Args:
            job: the job to compute.
            condemned: units to fail without computing them, with the reason.

        Raises:
            AcceleratorError: the GPU is no longer usable in this process.
        """
        # The setting is per thread; Ray starts this one with the environment's number of OpenMP threads.
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        stages = Stages()
        failures: dict[str, str] = {}
        try:
            with ExitStack() as stack:
                shards = {plan.table: stack.enter_context(self._writer.shard(plan)) for plan in job.shards}
                self._fill(shards, job, condemned or {}, failures, stages)
                filled = time.perf_counter()
        except torch.AcceleratorError:
            raise
        except Exception as error:  # a job is the unit of failure: report it and continue with others
            trace = traceback.format_exc()
            # Drop the traceback, whose frames would send the job's arrays to the driver.
            return JobResult(kind=job.kind, error=error.with_traceback(None), trace=trace, worker=self._name)
        ended = time.perf_counter()
        stages.seconds["commit"] = ended - filled
        records = [shard.record for shard in shards.values() if shard.record is not None]
        return JobResult(
            kind=job.kind, failures=failures, seconds=ended - started, stages_s=stages.seconds,
            num_done=len(job.units) - len(failures), worker=self._name, encoded=stages.encoded,
            num_bytes=sum(array.num_bytes for record in records for array in record.arrays.values()),
        )

    def probe(self, job: Job, name: str) -> None:
        """Computes one unit and discards the result, only to find out whether it kills the process."""
        stages = Stages()
        try:
            decoded = self._decode(next(unit for unit in job.units if unit.name == name), stages)
            self._turns.written(self._encode([decoded], stages)[1])
        except torch.AcceleratorError:
            raise
        except Exception:  # `run` meets the same error and reports it
            traceback.print_exc()

    def _fill(
        self, shards: Mapping[str, ShardWriter], job: Job, condemned: Mapping[str, str], failures: dict[str, str],
        stages: Stages,
    ) -> None:  # fmt: skip
        """Writes every row of the shards, or records its failure."""
        size = self._per_pass[job.kind]
        wanted = [unit for unit in job.units if unit.name not in condemned]
        with closing(ahead(self._pool, lambda unit: self._decode(unit, stages), wanted, 2 * size)) as decoding:
            for start in range(0, len(job.units), size):
                batch: list[_Decoded] = []
                for unit in job.units[start : start + size]:
                    if unit.name in condemned:
                        batch.append(_Decoded(unit=unit, failures=dict.fromkeys(
                            map(_modality, unit.keys), condemned[unit.name])))  # fmt: skip
                    else:
                        with stages("waiting"):
                            batch.append(next(decoding))
                self._write(shards, batch, failures, stages)

    def _write(
        self, shards: Mapping[str, ShardWriter], batch: list[_Decoded], failures: dict[str, str], stages: Stages
    ) -> None:
        """Encodes a batch and writes its rows unit by unit, each freed before the next."""
        encoded, num_clips = self._encode(batch, stages)
        told = deque((decoded.unit, decoded.facts, decoded.failures) for decoded in batch)
        batch.clear()  # pictures and sounds are not needed any more
        try:
            while encoded:
                (unit, facts, failed), arrays = told.popleft(), encoded.popleft()
                with stages("write"):
                    for table, key in unit.keys.items():
                        reason = failed.get(_modality(table))
                        if reason is None:
                            row, stream = arrays[table], self._streams.streams.get(table)
                            try:
                                shards[table].write(key, stream.stored(row) if stream else row,
                                                    facts.get(_modality(table)))
                            except StoreError as error:
                                reason = str(error)
                        if reason is not None:
                            failures[unit.name] = reason
                            shards[table].fail(key, reason)
                counted = num_clips and bool(arrays) and isinstance(unit.item, Clip)
                del arrays
                if counted:
                    num_clips -= 1
                    self._turns.written()
        finally:
            self._turns.written(num_clips)

    def _encode(
        self, batch: Sequence[_Decoded], stages: Stages
    ) -> tuple[deque[dict[str, dict[str, np.ndarray]]], int]:
        """The arrays of each unit of a batch by table, and the number of clips that count as not yet written."""
        found = [dict(decoded.arrays) for decoded in batch]
        num_clips = sum(isinstance(decoded.unit.item, Clip) and bool(decoded.inputs) for decoded in batch)
        names = dict.fromkeys(name for decoded in batch for name in decoded.inputs)
        if names:
            with self._turns.encoding(num_clips, stages):
                for name in names:
                    given = [number for number, decoded in enumerate(batch) if name in decoded.inputs]
                    wanted = {id: stream for id, stream in self._streams.streams.items() if stream.encoder == name and
                              any(id in batch[number].unit.keys for number in given)}  # fmt: skip
                    levels = list(dict.fromkeys(stream.computed for stream in wanted.values()))
                    per_clip = len(self._streams.steps) if self._streams.encoders[name].modality == "visual" else 1
                    with stages.encoder(name, per_clip * len(given)):
                        encoded = self._in_passes(name, [batch[number].inputs[name] for number in given], levels)
                    for number, arrays in zip(given, encoded, strict=True):
                        found[number] |= {id: stream.part(arrays) for id, stream in wanted.items()}
        return deque(found), num_clips

    def _in_passes(self, name: str, inputs: list[Any], levels: Sequence[str]) -> list[Mapping[str, np.ndarray]]:
        """The arrays of some inputs; once the GPU runs out of memory, batches are split in halves from then on.

        Raises:
            ConfigError: the GPU's memory does not suffice for the halves either.
        """
        encoder = self._streams.encoders[name]

        def encoded(size: int) -> list[Mapping[str, np.ndarray]]:
            return [arrays for start in range(0, len(inputs), size)
                    for arrays in encoder.encode(inputs[start : start + size], levels)]  # fmt: skip

        if encoder.modality != "visual":
            return encoded(len(inputs))
        size = self._clips_at_once
        try:
            return encoded(size)
        except torch.OutOfMemoryError as error:
            if size > 1 and size == self._batch_clips:
                self._clips_at_once = -(-size // 2)
                with suppress(torch.OutOfMemoryError):
                    return encoded(self._clips_at_once)
            raise ConfigError(
                f"the GPU of node {platform.node()} has no memory for {self._clips_at_once} clips of {name} in one "
                f"pass ({str(error).splitlines()[0]}); end what else uses the GPU, or give --batch-clips 1, "
                "--precision bf16, or --device cpu"
            ) from error

    def _decode(self, unit: Unit, stages: Stages) -> _Decoded:
        """Reads and decodes one unit; errors become its failures."""
        names = dict.fromkeys(self._streams.streams[id].encoder for id in unit.keys if id != OBJECTS)
        encoders = {name: self._streams.encoders[name] for name in names}
        schema = self._writer.schema
        with stages("decode"):
            if isinstance(unit.item, str):
                return _Decoded(unit=unit, inputs={name: each.prepare(unit.item) for name, each in encoders.items()})
            if isinstance(unit.item, Masks):
                try:
                    side = schema.mask_size if isinstance(schema.mask_size, int) else None
                    row = row_of_mask(unit.item.read(schema.steps, side), schema.mask_size)
                except DatasetError as error:
                    return _Decoded(unit=unit, failures={OBJECTS: str(error)})
                labelled = unit.item.labelled(schema.steps)
                return _Decoded(unit=unit, arrays={OBJECTS: row | {"labelled": labelled}})
            media, failures = _read(unit.item, schema.steps, [encoder.takes for encoder in encoders.values()])
            inputs = {name: encoder.prepare(media[encoder.modality].taken(encoder.takes))
                      for name, encoder in encoders.items() if encoder.modality in media}  # fmt: skip
            facts = {modality: _facts(each)[modality] for modality, each in media.items()}
            return _Decoded(unit=unit, failures=failures, inputs=inputs, facts=facts)


def _modality(table: str) -> str:
    return table.split("/")[0]


def _read(
    clip: Clip, steps: Steps, takes: Sequence[Frames | Sound | Text]
) -> tuple[dict[str, Media], dict[str, str]]:
    """Reads the needed modalities of a clip, and their failures; frames and audio may fail independently."""
    frames = {each for each in takes if isinstance(each, Frames)}
    rates_hz = {each.rate_hz for each in takes if isinstance(each, Sound)}
    wanted = [name for name, forms in (("visual", frames), ("audio", rates_hz)) if forms]
    try:
        return dict.fromkeys(wanted, read_media(clip, steps, frames, rates_hz)), {}
    except DatasetError as error:
        if len(wanted) < 2:
            return {}, dict.fromkeys(wanted, str(error))
    found, failures = {}, {}
    for modality, forms in (("visual", (frames, ())), ("audio", ((), rates_hz))):
        try:
            found[modality] = read_media(clip, steps, *forms)
        except DatasetError as error:
            failures[modality] = str(error)
    return found, failures


def _facts(media: Media) -> dict[str, dict[str, Any]]:
    """Facts to note with the rows of a clip, by modality."""
    ended = media.repeated_from_s
    seen = {"notes": ",".join(media.frame_notes), "repeated_from_s": ended}
    heard = {"notes": ",".join(media.sound_notes), "silent": media.silent}
    return {modality: {name: value for name, value in facts.items() if value not in ("", None)}
            for modality, facts in (("visual", seen), ("audio", heard))}  # fmt: skip


def ahead(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T], window: int) -> Generator[_R]:
    """Yields the results of `work` in order; starts at most `window` items ahead."""
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
