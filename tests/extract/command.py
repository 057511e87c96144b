"""The command run in this process, without Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extract.cli import main
from extract.encoders.presets import preset_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.pipeline.content import contents_of
from extract.pipeline.plan import Job, plan_jobs, wanted_units
from extract.pipeline.tables import write_tables
from extract.pipeline.worker import JobResult, Worker
from refavs.data.layouts import Source
from refavs.steps import Steps
from refavs.store.format.schema import StoreSchema
from refavs.store.writer import StoreWriter

TEN = Steps(10)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command, which must exit with 2 and one line."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("refavs-extract: ")
    return lines[0]


def tiny(source: Path, store: Path, *more: object) -> tuple[object, ...]:
    return source, store, "--preset", "tiny", "--weights", "random", *more


def run_with(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Iterator[JobResult]]) -> None:
    """Puts something in the place of Ray."""

    def run_jobs(*arguments: object) -> Iterator[JobResult | None]:
        yield None
        yield from run(*arguments)

    monkeypatch.setattr("extract.pipeline.extraction.run_jobs", run_jobs)


def in_this_process(jobs, store, streams, resources, note) -> Iterator[JobResult]:
    worker = Worker(store, streams, 1)
    return (worker.run(job) for job in jobs)


def streams_of(preset: str = "tiny", steps: Steps = TEN, **weights: object) -> StreamSet:
    """The streams of a preset, with random weights unless others are named."""
    setup = EncoderSetup(weights=WeightSource(**{"kind": "random", **weights}))  # pyright: ignore[reportArgumentType]
    return choose_streams(preset_named(preset).streams, steps, lambda name: setup)


def open_store(path: Path | str, streams: StreamSet, mask_size: int = 96) -> StoreWriter:
    return StoreWriter.open(path, StoreSchema(
        streams=streams.specs(), source="test", seconds=streams.steps.seconds, fps=streams.steps.fps,
        mask_size=mask_size, objects_per_shard=128,
    ))  # fmt: skip


def jobs_of(writer: StoreWriter, source: Source, streams: StreamSet) -> list[Job]:
    """What of a source a store lacks."""
    return plan_jobs(writer, wanted_units(source, streams, contents_of(source.clips, streams.steps)[0]))


def extract(source: Source, path: Path, streams: StreamSet) -> list[JobResult]:
    """What the command does, without Ray."""
    writer, worker = open_store(path, streams), Worker(str(path), streams, 1)
    results = [worker.run(job) for job in jobs_of(writer, source, streams)]
    write_tables(writer, source, contents_of(source.clips, streams.steps)[0])
    writer.finalise()
    return results
