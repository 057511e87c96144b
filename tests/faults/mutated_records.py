"""JSON of another shape in every record that a command reads: each case is one line, or harmless.

    python -m tests.faults.mutated_records [--all]

tries the cases in this process and prints how each command took them. A case may take `LIMIT_S` of processor
time and `LIMIT_BYTES`.
"""

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S, LIMIT_BYTES = 5.0, 2**30
REMOVED = object()
NESTED: list[Any] = []
for _ in range(600):
    NESTED = [NESTED]
VALUES: dict[str, Any] = {
    "missing": REMOVED, "null": None, "true": True, "-1": -1, "4.5": 4.5, "10^12": 10**12, "a word": "word",
    "an empty word": "", "[]": [], "{}": {}, "[[]]": [[]], "{'a': {}}": {"a": {}}, "infinite": math.inf,
    "not a number": math.nan, "nested": NESTED, "NUL": "\0", "half a letter": "\ud800",
}  # fmt: skip
TEXTS = {
    "empty": b"", "cut": b'{"a', "null": b"null", "[]": b"[]", "a number": b"3", "a word": b'"word"',
    "bytes": b"\xff\xfe\0", "deep list": b"[" * 100_000, "deep object": b'{"a":' * 100_000, "long number": b"1" * 5000,
}  # fmt: skip
PLACES = {"a pipe": os.mkfifo, "an endless device": lambda path: os.symlink("/dev/zero", path),
          "a folder": os.mkdir, "a huge file": lambda path: path.touch() or os.truncate(path, 2**40)}  # fmt: skip
DECLARED = "declared sizes"
PARTS = ("store", "sweep", "trial", DECLARED)


@dataclass(frozen=True)
class Case:
    """Something that replaces a file."""

    what: str
    replace: Callable[[Path], object]


@dataclass
class Outcome:
    """How the commands took the cases.

    Attributes:
        counts: of each command by `ok`, `refused` and `fault`.
        faults: command, file, what was in it, and what went wrong.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    peak_mb: int = 0


def cases_of(folder: Path, file: str) -> Iterator[Case]:
    """Every case of a JSON file; a record with a checksum gets the one of its new content."""
    lines = file.endswith(".jsonl")
    data = (folder / file).read_bytes()
    whole: Any = [json.loads(line) for line in data.splitlines()] if lines else json.loads(data)
    sealed = isinstance(whole, dict) and whole.keys() == {"crc32c", "record"}
    for what, text in TEXTS.items():
        yield Case(what, _writer(text))
        if sealed:
            yield Case(f"{what} within its checksum", _writer(_sealed(text)))
    for what, make in PLACES.items():
        yield Case(what, lambda path, make=make: make(path))
    value = whole["record"] if sealed else whole
    for place in _places(value):
        for what, replacement in VALUES.items():
            changed = _changed(value, place, replacement)
            text = b"".join(json.dumps(line).encode() + b"\n" for line in changed) if lines and isinstance(
                changed, list) else json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
            name = "/".join(map(str, place)) or "all of it"
            yield Case(f"{name}: {what}", _writer(_sealed(text) if sealed else text))


def _writer(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _sealed(body: bytes) -> bytes:
    from refavs.store.format.checksum import crc32c

    return f'{{"crc32c":"{crc32c(body):08x}","record":'.encode() + body + b"}"


def _places(value: Any, most: int = 40) -> Iterator[tuple[Any, ...]]:
    """The value itself and what is in it; of many alike the first ones."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (name, one) in enumerate(inner):
        if number < (2 if isinstance(value, list) else most):
            yield from ((name, *rest) for rest in _places(one, most))


def _changed(value: Any, place: Sequence[Any], replacement: Any) -> Any:
    if not place:
        return None if replacement is REMOVED else replacement
    copy = value.copy()
    changed = _changed(value[place[0]], place[1:], replacement)
    if len(place) == 1 and replacement is REMOVED:
        del copy[place[0]]
    else:
        copy[place[0]] = changed
    return copy


Command = Callable[[Path], int]


@dataclass(frozen=True)
class Target:
    """A folder, the JSON files in it, and the commands that read them."""

    folder: Path
    files: tuple[str, ...]
    commands: dict[str, Command]


def _store(root: Path) -> list[Target]:
    import pandas as pd

    from extract.store_cli import main
    from refavs.store.backends.base import LocalFolder
    from refavs.store.format.schema import object_key, text_key
    from refavs.store.lease import Lease
    from refavs.terminal.command import run_command
    from tests.refavs import small_store

    small_store.write_store(root)
    (root / "lease.json").write_bytes(Lease(small_store.open_writer(root).folder, "refavs-extract")._data)

    def extract(folder: Path) -> int:
        writer = small_store.open_writer(folder)
        content = {stream: [small_store.content_key(stream, clip) for clip in small_store.CLIPS]
                   for stream in (small_store.VISUAL, small_store.SOUND)}  # fmt: skip
        content[small_store.TEXT] = [*map(text_key, small_store.TEXTS)]
        content["objects"] = [object_key(clip, 1) for clip in small_store.CLIPS]
        for table, keys in content.items():
            writer.noted(table)
            if any(writer.plan(table, [[key] for key in keys])):  # a record that is none, whose rows would be computed
                return 0
        writer.write_clips(small_store.clip_table(small_store.CLIPS))
        writer.write_texts(pd.DataFrame({"key": content[small_store.TEXT], "text": small_store.TEXTS}))
        writer.write_expressions(small_store.expressions(writer))
        writer.finalise()
        return 0

    def lease(folder: Path) -> int:
        with Lease(LocalFolder(folder), "refavs-extract", beat_s=0.04, expires_s=0.1):
            return 0

    records = [path.relative_to(root).as_posix() for path in sorted((root / "commits").rglob("00000.json"))]
    tables = [f"commits/{name}.json" for name in ("clips", "text", "expressions")]
    files = ("zarr.json", *records, *tables, "commits/listing.json",
             "clips/audio/vggish/zarr.json", "clips/id/zarr.json", "expressions/uid/zarr.json")  # fmt: skip
    verify = {"verify": lambda folder: main(["verify", str(folder)])}
    return [Target(root, files, {
        "info": lambda folder: main(["info", str(folder)]), **verify,
        "extract": lambda folder: run_command("extract", lambda: extract(folder)),
    }), Target(root, ("lease.json",), {
        "lease": lambda folder: run_command("extract", lambda: lease(folder)), **verify,
    })]  # fmt: skip


def _sweep(root: Path, whole: bool) -> list[Target]:
    from experiments.report.contents import ReportOptions, build_report
    from experiments.report.figures import report_figures
    from experiments.sweep.status import main
    from refavs.terminal.command import run_command
    from tests.experiments import small_sweep

    trial = small_sweep.write_trial(root, "full")
    facts = json.loads((trial / "config.json").read_text())
    facts |= {"digests": {"decoder_weights": "sha"}, "weights_dir": None}
    (trial / "config.json").write_text(json.dumps(facts))
    status = {"state": "finished", "time_s": 3.0, "started_s": 1.0, "reason": "none"}
    (trial / "status.json").write_text(json.dumps(status))
    (trial / "mlflow.json").write_text(json.dumps({"attempt": 1, "uri": "x", "epochs": 2, "time_s": 3.0}))
    records = [{"epoch": n, "seconds": 1.0, "time_ms": 1000 * n, "metrics": {"train/loss": 1 / n, "val/J": n / 10}}
               for n in (1, 2)]  # fmt: skip
    (trial / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    several = {"name": "a", "store": "/a", "fingerprint": small_sweep.STORE, "random_features": True,
               "encoders": {"text": "roberta"}, "contents": "c"}  # fmt: skip
    small_sweep.write_facts(
        root, stores={small_sweep.STORE: several}, current=[trial.name], to_come=1, run_id="r", tracking_uri="x",
        git={"mlflow.source.git.commit": "c", "mlflow.source.git.dirty": "true"}, defaults={"train.epochs": 1},
    )  # fmt: skip
    controls = {"all background": {"test_s": {"J": 0.1, "F": 0.0}, "dimension/spatial": {"J": 0.1}}}
    controls |= {"mean mask, best": controls["all background"]}
    (root / "controls.json").write_text(json.dumps(
        {"store": small_sweep.STORE, "controls": {}, "protocols": {"canonical": controls}}
    ))  # fmt: skip

    drawn = set[str]()

    def report(folder: Path) -> int:
        report = build_report([folder], ReportOptions())
        figures = repr(dataclasses.replace(report, title="", facts=(), warnings=(), tables=()))
        if whole and figures not in drawn:
            report_figures(report)
            drawn.add(figures)
        return 0

    names = ("config.json", "status.json", "mlflow.json", "result.json", "metrics.jsonl")
    return [Target(root, ("sweep.json", "controls.json", *(f"trials/{trial.name}/{name}" for name in names)), {
        "status": lambda folder: main([str(folder)]),
        "report": lambda folder: run_command("refavs-report", lambda: report(folder)),
    })]  # fmt: skip


def _trial(root: Path, whole: bool) -> list[Target]:
    import torch

    from experiments.predict import trained_run as predict
    from extract.media.clip import Media
    from refavs.model.checkpoint import save_model
    from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
    from refavs.model.heads.eemc import EEMC
    from refavs.model.heads.options import EEMCOptions
    from refavs.store.format.array_spec import table_path
    from refavs.terminal.command import run_command
    from tests.extract.command import streams_of

    built, first, choose = streams_of(), dict[str, Any](), predict.choose_streams

    def remembered(names: Any, steps: Any, setup: Any, **others: Any) -> Any:
        """The streams of the unchanged record are built once; those of other facts are built, or refused."""
        key = repr((names, steps, [setup(name.partition("/")[0]) for name in names], others))
        if not first:
            first.update(key=key, streams=choose(names, steps, setup, **others))
        return first["streams"] if key == first["key"] else choose(names, steps, setup, **others)

    def features_of(run: predict.TrainedRun) -> tuple[Any, Any]:
        """The features of silence and of a word; those of the unchanged record are computed once."""
        found = first.get("features") if run.streams is first["streams"] else None
        found = found or (run.features(SILENT), run.words(["a word"]))
        if run.streams is first["streams"]:
            first["features"] = found
        return found

    predict.choose_streams = remembered
    specs = {f"{table_path(id)}/{spec.name}": spec for id, stream in built.streams.items() for spec in stream.arrays}

    def size(path: str) -> dict[str, int]:
        return dict(zip(specs[path].axes, specs[path].shape, strict=True))

    paths = {path.rsplit("/", 1)[1]: path for path in specs if path.startswith("clips/visual/")}
    maps = tuple(MapSize(name=name, path=paths[name], channels=(one := size(paths[name]))["c"], height=one["h"],
                         width=one["w"]) for name in ("mask_features", "s8", "s16", "s32"))  # fmt: skip
    audio, text = (next(path for path in specs if path.startswith(start) and "valid" not in path)
                   for start in ("clips/audio", "text/"))  # fmt: skip
    torch.manual_seed(0)
    options = EEMCOptions(num_layers=1, num_queries=4, num_heads=4, feedforward_channels=32, decoder_layers=1,
                          decoder_feedforward_channels=32)  # fmt: skip
    model = EEMC(options, FeatureSizes(audio=StreamSize(path=audio, channels=size(audio)["c"]),
                                       text=StreamSize(path=text, channels=size(text)["c"]), maps=maps))  # fmt: skip
    encoders = {id: built.fingerprint(stream) for id, stream in built.streams.items()}
    facts = {"store": "s", "encoders": json.loads(json.dumps(encoders)), "seconds": 10, "mask_size": 96,
             "trial": {"train": {"precision": "fp32"}}}  # fmt: skip
    save_model(root / "checkpoint", model, facts)

    def predicted(folder: Path) -> int:
        run = predict.TrainedRun(predict.checkpoint_of(str(folder), None))
        if whole:
            features, words = features_of(run)
            run.batch(features, ["a word"], words)
        return 0

    import numpy as np

    (form,), (rate_hz,) = built.inputs()
    SILENT = Media(frames={form: np.zeros((10, form.size, form.size, 3), np.uint8)}, silent=True,
                   sound={rate_hz: np.zeros(10 * rate_hz, np.float32)})  # fmt: skip
    return [Target(root, ("checkpoint/config.json",), {
        "predict": lambda folder: run_command("predict", lambda: predicted(folder)),
    })]  # fmt: skip


def try_all(target: Target, file: str, chosen: Sequence[Case], outcome: Outcome) -> None:
    """Tries each case of a file by each command that reads it, on a copy that is renewed where a command wrote."""
    with tempfile.TemporaryDirectory(dir=target.folder.parent) as name:
        copy = Path(name) / target.folder.name
        shutil.copytree(target.folder, copy)
        for command, run in target.commands.items():
            if fault := _fault(run, copy, 120):  # the first call of all imports much
                outcome.faults.append(f"{command}: unchanged: {fault}")
        gc.freeze()  # collections after each case then skip what the imports made
        before = None
        for case in chosen:
            for command, run in target.commands.items():
                if _states(copy, file) != before:
                    shutil.rmtree(copy)
                    shutil.copytree(target.folder, copy)
                    before = _states(copy, file)
                _clear(copy / file)
                case.replace(copy / file)
                fault = _fault(run, copy)
                counts = outcome.counts.setdefault(command, Counter())
                counts["fault" if fault not in ("", "refused") else fault or "ok"] += 1
                if fault not in ("", "refused"):
                    outcome.faults.append(f"{command}: {file}: {case.what}: {fault}")


def _states(folder: Path, but: str) -> dict[str, tuple[int, ...]]:
    """What shows that something was written below a folder, of each file but one."""
    found: dict[str, tuple[int, ...]] = {}
    for place, _, files in os.walk(folder):
        for name in files:
            facts = os.lstat(path := os.path.join(place, name))
            found[path] = (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    found.pop(str(folder / but), None)
    return found


def try_declared(work: Path, store: Path, checkpoint: Path, outcome: Outcome) -> None:
    """Tries each file whose declared numbers would take memory or time."""
    from refavs.terminal.command import run_command
    from tests.faults.declared_sizes import refusals

    def run(read: Callable[[], object]) -> int:
        read()
        return 0

    counts = outcome.counts.setdefault(DECLARED, Counter())
    for what, read in refusals(work, store, checkpoint):
        fault = _fault(lambda _, read=read: run_command("reader", lambda: run(read)), work)
        counts["refused" if fault == "refused" else "fault"] += 1
        if fault != "refused":
            outcome.faults.append(f"{DECLARED}: {what}: {fault or 'taken'}")


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _fault(run: Command, folder: Path, limit_s: float = LIMIT_S) -> str:
    """What went wrong: nothing where the case is harmless, `refused` where it is one line."""
    gc.collect()  # networks of the case before
    signal.signal(signal.SIGPROF, _too_long)
    told, started = io.StringIO(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            status = run(folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        where = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in where if "site-packages" not in frame.filename][-1]
        return f"{type(error).__name__}: {str(error)[:80]} in {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if (seconds := time.process_time() - started) > limit_s:
        return f"{seconds:.1f} s"
    lines = [line for line in told.getvalue().splitlines() if not line.startswith(("verify:", "report:"))]
    if status == 2 and len(lines) != 1:
        return f"{len(lines)} lines: {lines[:3]}"
    return {0: "", 2: "refused", 3: ""}.get(status, f"status {status}")


def _too_long(*_: object) -> None:
    raise TimeoutError("it took too long")


def limit_memory() -> None:
    """From here on this process may ask for `LIMIT_BYTES` more than it has."""
    facts = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 1024 for line in facts.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + LIMIT_BYTES, resource.RLIM_INFINITY))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every case, not a sample")
    parser.add_argument("--most", type=int, default=40, help="cases of one file in the sample")
    parser.add_argument("--only", choices=PARTS, help="a part of the cases")
    args = parser.parse_args(argv)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    outcome, rng, parts = Outcome(), random.Random(0), (args.only,) if args.only else PARTS
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        work = Path(name)
        # A report's figures and a prediction's features take most of a sample's time.
        make = {"store": lambda: _store(work / "store"), "sweep": lambda: _sweep(work / "sweep", args.all),
                "trial": lambda: _trial(work / "trial", args.all)}  # fmt: skip
        needed = ("store", "trial") if args.only == DECLARED else parts
        made = {part: make[part]() for part in make if part in needed}
        limit_memory()
        for target in (target for part in made if part in parts for target in made[part]):
            for file in target.files:
                cases = [*cases_of(target.folder, file)]
                if not args.all and len(cases) > args.most:
                    cases = rng.sample(cases, args.most)
                try_all(target, file, cases, outcome)
        if DECLARED in parts:
            (work / "sizes").mkdir()
            try_declared(work / "sizes", work / "store", work / "trial" / "checkpoint", outcome)
        outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(vars(outcome), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
