"""Logs the progress and speed of a run: JSON lines beside the store, and a short note for the progress bar."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from extract.pipeline.turns import JOB_STAGES
from extract.pipeline.worker import JobResult

INTERVAL_S = 5.0


@dataclass
class _Span:
    """Time from one worker's first to its last job, on the driver's clock."""

    start_s: float
    end_s: float = 0.0


@dataclass
class _Counts:
    done: dict[str, int]
    stages_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(JOB_STAGES, 0.0))
    encoded: dict[str, tuple[int, float]] = field(default_factory=dict)
    num_failures: int = 0
    num_broken: int = 0
    num_bytes: int = 0
    num_jobs: int = 0


class RunLog:
    """Adds up the results of a run, and appends a line to a file every few seconds and at the end.

    A line is one JSON object. `event` is `start`, `progress`, `failure` (with kind, name and reason), `note` (with
    text), or `end`; start, progress and end carry what `summary` returns. Lines of earlier runs stay, and a run that
    was killed has no `end`.

    Args:
        path: the file; None writes nothing.
        totals: units to do, by kind.
    """

    def __init__(self, path: Path | None, totals: Mapping[str, int] | None = None) -> None:
        self._path, self._totals = path, dict(totals or {})
        self._counts = _Counts(dict.fromkeys(self._totals, 0))
        self._workers: dict[str, _Span] = {}
        self._file: TextIO | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "RunLog":
        self._started = self._last_line = time.monotonic()
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
        self._write("start", self.summary())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._write("end", self.summary() | {"error": None if kind is None else kind.__name__})
            finally:
                self._file.close()

    def add(self, result: JobResult | None) -> None:
        """Adds the result of one job; None only updates the time."""
        now = time.monotonic()
        if result is not None:
            self._count(result, now)
            for name, reason in result.failures.items():
                self._write("failure", {"kind": result.kind, "name": name, "reason": reason})
            if result.error is not None:
                self._write("note", {"text": f"a job of {result.kind} broke: {result.error!r}"})
        if now - self._last_line >= INTERVAL_S:
            self._last_line = now
            self._write("progress", self.summary())

    def note(self, text: str) -> None:
        """Logs one line about the run, such as the loss of a worker."""
        self._write("note", {"text": text})

    def brief(self) -> str:
        """Speed and utilisation, for the progress bar."""
        return f"{self.clips_per_s:.2f} clips/s, encoders {self.encoder_utilisation:.0%} busy"

    def summary(self) -> dict[str, Any]:
        """All counts so far; seconds except `elapsed_s` are summed over the workers.

        `encoders` has for each the frames, sounds of clips or texts that it took, and the seconds for them.
        """
        counts = self._counts
        return {
            "elapsed_s": round(self._elapsed_s, 3), "done": dict(counts.done), "total": dict(self._totals),
            "clips_per_s": round(self.clips_per_s, 4), "bytes": counts.num_bytes, "jobs": counts.num_jobs,
            "failures": counts.num_failures, "broken_jobs": counts.num_broken, "workers": len(self._workers),
            "stages_s": {name: round(seconds, 3) for name, seconds in counts.stages_s.items()},
            "encoder_utilisation": round(self.encoder_utilisation, 4),
            "encoders": {
                name: {"inputs": inputs, "seconds": round(seconds, 3), "inputs_per_s": round(inputs / seconds, 3)}
                for name, (inputs, seconds) in counts.encoded.items() if seconds
            },
        }  # fmt: skip

    @property
    def clips_per_s(self) -> float:
        """Clips committed per second since the start."""
        return self._counts.done.get("clips", 0) / max(self._elapsed_s, 1e-9)

    @property
    def encoder_utilisation(self) -> float:
        """Share of the workers' time, from first to last job, in which their encoders computed."""
        seconds = sum(span.end_s - span.start_s for span in self._workers.values())
        return self._counts.stages_s["encode"] / seconds if seconds else 0.0

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def _count(self, result: JobResult, now: float) -> None:
        counts = self._counts
        counts.done[result.kind] = counts.done.get(result.kind, 0) + result.num_done
        counts.num_jobs += 1
        counts.num_bytes += result.num_bytes
        counts.num_failures += len(result.failures)
        counts.num_broken += result.error is not None
        for name, seconds in result.stages_s.items():
            counts.stages_s[name] += seconds
        for name, (inputs, seconds) in result.encoded.items():
            known, spent_s = counts.encoded.get(name, (0, 0.0))
            counts.encoded[name] = known + inputs, spent_s + seconds
        if result.stages_s:
            span = self._workers.setdefault(result.worker, _Span(now - result.seconds))
            span.start_s = min(span.start_s, now - result.seconds)
            span.end_s = now

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"time": stamp, "event": event, **facts}) + "\n")
        self._file.flush()
