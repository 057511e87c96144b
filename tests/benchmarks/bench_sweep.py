"""Overhead of a sweep on top of training: trials, fused trials, logging, and a call with nothing to do.

Prints Markdown tables, each row as it is found; a ratio is of times taken in one run. Features are made up, which takes
the same time as real ones. Usage: python tests/benchmarks/bench_sweep.py [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from experiments.cluster.resources import Resources
from experiments.grid.config import TrialConfig
from experiments.grid.expand import Grid, expand
from experiments.records.ledger import Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.sweep.driver import run_sweep
from experiments.sweep.outcome import Outcome
from experiments.tracking.client import Tracker
from experiments.tracking.sync import Mirror
from experiments.training.history import write_history
from experiments.training.loop import Run, train, train_group
from refavs.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.machine import GrowingTable, describe
from tests.benchmarks.nested_train import nested_trials, ray_start_seconds
from tests.benchmarks.sweep_store import write_wide_store
from tests.experiments.small_store import make_store
from tests.faults.sweeps import COMMAND, Server

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "visual_downsample": 2, "decoder_layers": 0},
    "loss": {"num_points": 0},
    "train": {"epochs": 1, "steps_per_epoch": 20, "batch_size": 4},
}
NUM_METRICS, NUM_EPOCHS = 50, 40
# A head that reads about 73 MB a step and has little to do with them, and the paper's kind of head on the same clips.
FUSED = {"epochs": 1, "batch_size": 4, "frames": 1}
DATA_BOUND = {
    "model": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "channels": 32, "feedforward_channels": 32,
              "decoder_layers": 0},
    "loss": {"num_points": 256}, "train": {**FUSED, "expressions_per_clip": 1},
}  # fmt: skip
COMPUTE_BOUND = {
    "model": {"num_layers": 1, "num_queries": 20, "num_heads": 4, "decoder_layers": 3},
    "loss": {"num_points": 256}, "train": {**FUSED, "expressions_per_clip": 4, "frames": 4},
}  # fmt: skip
NUM_FUSED = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few trials: whether it runs, not how fast")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in the workers
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "ray", "mlflow"]), flush=True)
        splits = {"train": 2, "val": 1, "test_s": 1, "test_n": 1}
        store = make_store(root / "store", splits)
        start = ray_start_seconds()
        print(f"- start of Ray on this machine: {start:.1f} s", flush=True)
        table_of_trials(root, store, start, 2 if args.quick else 12)
        table_of_fused(root, args.quick)
        table_of_logging(root, store, 5 if args.quick else NUM_EPOCHS)
        table_of_reruns(root, store, start, 4 if args.quick else 60)
    return 0


def table_of_trials(root: Path, store: FeatureStore, start: float, num_trials: int) -> None:
    """Trials of one epoch, one at a time: the loop alone, our sweep, and a trainer of Ray Train in each Tune trial."""
    found = GrowingTable(
        f"{num_trials} trials of one epoch, one at a time",
        ["how", "trials", "seconds, without Ray's start", "a trial", "beyond the plain loop, a trial", "must reach"],
    )
    configs = [trial.config for trial in grid_of(num_trials).trials]
    train(configs[0], store, root / "warm")
    plain = seconds_of(lambda: one_after_another(configs, store, root / "plain"))
    each = plain / num_trials
    found.add("plain loop in one process", str(num_trials), f"{plain:.1f}", f"{each:.2f}", "0", "")
    ours = seconds_of(lambda: sweep(grid_of(num_trials), store, root / "ours", Resources(max_concurrent=1))) - start
    beyond = ours / num_trials - each
    found.add("refavs-sweep: MLflow, checkpoints, table", str(num_trials), f"{ours:.1f}", f"{ours / num_trials:.2f}",
              f"{beyond:.2f}", "2 s")  # fmt: skip
    nested = seconds_of(lambda: nested_trials(configs, store.location, root / "nested")) - start
    theirs = nested / num_trials - each
    found.add("a TorchTrainer of one worker in each Tune trial, nothing logged", str(num_trials), f"{nested:.1f}",
              f"{nested / num_trials:.2f}", f"{theirs:.2f}", "")  # fmt: skip
    found.add("ours over the nested one's", "", "", "", f"{beyond / theirs:.2f}", "0.25")


def table_of_fused(root: Path, quick: bool) -> None:
    """Whole trials that differ in beta: read, train, evaluate, save; without Ray, in this process."""
    found = GrowingTable(
        f"{NUM_FUSED} trials that differ in beta, one after another and over one read",
        ["sizes", "steps", "one after another, s", "fused, s", "processor s", "gain", "must reach"],
    )
    store = write_wide_store(root / "wide", 8 if quick else 128, 4 if quick else 8)
    for name, base, steps, target in (("data-bound", DATA_BOUND, 60, "3x"), ("compute-bound", COMPUTE_BOUND, 16, "1x")):
        num_steps = 1 if quick else steps
        content = {"base": {**base, "train": {**base["train"], "steps_per_epoch": num_steps}},
                   "grid": {"model.beta": [number / NUM_FUSED for number in range(NUM_FUSED)]}}  # fmt: skip
        configs = [trial.config for trial in expand("fused", content, "bench.yaml", {}).trials]
        train(configs[0], store, root / f"warm {name}")
        alone = twice_timed(partial(one_after_another, configs, store, root / f"alone {name}"))
        runs = [Run(config=config, folder=root / f"fused {name}" / str(n)) for n, config in enumerate(configs)]
        fused = twice_timed(partial(train_group, runs, store))
        assert all(run.result and run.error is None for run in runs)
        found.add(name, str(num_steps), f"{alone[0]:.1f}", f"{fused[0]:.1f}", f"{alone[1]:.1f} / {fused[1]:.1f}",
                  f"{alone[0] / fused[0]:.2f}x", target)  # fmt: skip
        steps_alone, steps_fused = (seconds_in_steps(root / f"{how} {name}") for how in ("alone", "fused"))
        found.add(f"{name}, training steps alone", str(num_steps), f"{steps_alone:.1f}", f"{steps_fused:.1f}", "",
                  f"{steps_alone / steps_fused:.2f}x", "")  # fmt: skip


def seconds_in_steps(root: Path) -> float:
    """Of the trials in the folders there, as their records tell; a fused one's is its share."""
    records = [record for folder in root.iterdir() for record in read_metrics(folder)]
    return sum(record["metrics"]["train/seconds_per_step"] * record["step"] for record in records)


def one_after_another(configs: Sequence[TrialConfig], store: FeatureStore, root: Path) -> None:
    """The plain loop on each."""
    for number, config in enumerate(configs):
        train(config, store, root / str(number))


def twice_timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    processor = time.process_time()
    return seconds_of(call), time.process_time() - processor


def table_of_logging(root: Path, store: FeatureStore, num_epochs: int) -> None:
    """Milliseconds in which an epoch's metrics are logged, by ours and by a call for each metric."""
    found = GrowingTable(
        f"{NUM_METRICS} metrics logged at each of {num_epochs} epochs",
        ["where", "ours, ms an epoch", "slowest", "a call for each metric, ms", "the trials wait, ms", "must reach"],
    )
    with Server(root / "server") as server:
        for where, uri in (("SQLite", f"sqlite:///{root / 'logging.db'}"), ("MLflow server, HTTP", server.uri)):
            tracker = Tracker(uri, "logging", "bench", root / "artifacts" if uri.startswith("sqlite") else None)
            with redirect_stdout(StringIO()):
                waited = mirrored(tracker, root / f"mirrored-{where}", store, num_epochs)
            run_id = tracker.start_sweep("bench", "", store, {})
            epochs = range(1, num_epochs + 1)
            ours = [seconds_of(partial(tracker.log_records, run_id, [record(epoch)])) for epoch in epochs]
            times = [seconds_of(partial(one_by_one, tracker, run_id, epoch)) for epoch in epochs[:3]]
            found.add(where, f"{1000 * statistics.median(ours):.1f}", f"{1000 * max(ours):.1f}",
                      f"{1000 * statistics.median(times):.1f}", f"{1000 * waited:.2f}", "20")  # fmt: skip


def mirrored(tracker: Tracker, out: Path, store: FeatureStore, num_epochs: int) -> float:
    """Seconds that a sweep spends on handing over an epoch; the requests come from a thread."""
    ledger = Ledger(out)
    (entry,) = ledger.entries(grid_of(1).trials, features_in(store))
    ledger.enter(entry, store.fingerprint)
    entry.set_status("running", started_s=time.time())
    tracker.contact()
    mirror = Mirror(tracker, ledger, store, "bench", "", {}, {})
    mirror.start()
    waits, records = [], []
    for epoch in range(1, num_epochs + 1):
        records.append(record(epoch))
        write_history(entry.folder / "metrics.jsonl", records)
        waits.append(seconds_of(partial(mirror.note, entry)))
        time.sleep(0.02)
    entry.set_status("stopped")
    mirror.note(entry)
    assert not mirror.close("FINISHED"), mirror.error
    return statistics.median(waits)


def record(epoch: int, prefix: str = "ours") -> dict[str, Any]:
    """An epoch's record with made-up numbers."""
    metrics = {f"{prefix}/{number}": number / epoch for number in range(NUM_METRICS)}
    return {"epoch": epoch, "time_ms": int(time.time() * 1000), "metrics": metrics}


def one_by_one(tracker: Tracker, run_id: str, epoch: int) -> None:
    """What MLflow's callbacks do."""
    for name, value in record(epoch, "theirs")["metrics"].items():
        tracker.client.log_metric(run_id, name, value, step=epoch)


def table_of_reruns(root: Path, store: FeatureStore, start: float, num_trials: int) -> None:
    """The command on a sweep that is finished."""
    found = GrowingTable(f"The same command on {num_trials} finished trials",
                         ["what", "seconds", "beyond Ray's start", "must reach"])  # fmt: skip
    file = root / "many.yaml"
    file.write_text(grid_text(num_trials))
    seconds = seconds_of(lambda: command(file, store, root / "many"))
    found.add(f"first call, trains {num_trials} trials", f"{seconds:.1f}", f"{seconds - start:.1f}", "")
    seconds = seconds_of(lambda: command(file, store, root / "many"))
    found.add("again, nothing to do: Ray is not started, Python is", f"{seconds:.1f}", f"{seconds:.1f}", "5")
    file.write_text(grid_text(num_trials + 1))
    seconds = seconds_of(lambda: command(file, store, root / "many"))
    found.add("again with one seed more, which is trained", f"{seconds:.1f}", f"{seconds - start:.1f}", "")


def grid_text(num_trials: int) -> str:
    """A grid file of trials that differ in their seed and have one step each."""
    return f"base: {replace_steps(1)}\nseeds: {list(range(num_trials))}\n"


def replace_steps(steps: int) -> dict[str, Any]:
    """The smallest settings, with so many steps in an epoch."""
    return {**TINY, "train": {**TINY["train"], "steps_per_epoch": steps}}


def grid_of(num_trials: int) -> Grid:
    """Trials that differ in their seed."""
    return expand("bench", {"base": TINY, "seeds": list(range(num_trials))}, "bench.yaml", {})


def sweep(grid: Grid, store: FeatureStore, out: Path, resources: Resources) -> Outcome:
    """Runs a sweep in this process, without its lines of progress."""
    with redirect_stderr(StringIO()):
        outcome = run_sweep(grid, store, out, resources)
    assert outcome.num_run == len(grid.trials), outcome.failures
    return outcome


def command(grid: Path, store: FeatureStore, out: Path) -> None:
    """refavs-sweep in a process of its own."""
    arguments = [str(grid), "--store", store.location, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
