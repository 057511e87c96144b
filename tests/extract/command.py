"""The command run in this process, without Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extract.cli import main
from extract.pipeline.worker import JobResult, Worker


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


def in_this_process(jobs, store, preset, encoders, resources, note) -> Iterator[JobResult]:
    worker = Worker(store, preset, encoders, 1)
    return (worker.run(job) for job in jobs)
