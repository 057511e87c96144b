"""refavs-sweep: runs the unfinished trials of a grid and compares all of them."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.grid.file import shipped_grids
from refavs.errors import ConfigError
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import warn

if TYPE_CHECKING:
    from experiments.cluster.resources import Resources
    from experiments.grid.expand import Grid
    from experiments.grid.trial import Trial
    from experiments.sweep.outcome import Outcome
    from refavs.store import FeatureStore

RETRY = "--retry-failed tries them again from their last epoch"
STATUS, SETTINGS = "status", "settings"  # reserved names
CONTROLS = ("cancel", "hold", "resume", "add")  # reserved as well
EPILOG = """examples:
  refavs-sweep smoke --store demo/store                     the shipped grid `smoke`, into runs/smoke
  refavs-sweep beta --store store --dry-run                 what is done and what is missing
  refavs-sweep my.yaml --store store --set train.epochs=3   a grid file, with a setting replaced
  refavs-sweep status runs/smoke                            its progress, from any other terminal
  refavs-sweep cancel|hold|resume|add runs/smoke ...        steers it from any other terminal
  refavs-sweep settings                                     every setting of a trial: default, accepted values, meaning
  refavs-sweep settings HEAD                                the same for another head, which --set model.head=HEAD takes
"""


def build_parser() -> CommandParser:
    """The command line of refavs-sweep."""
    parser = CommandParser(prog="refavs-sweep", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("grid", metavar="GRID",
        help=f"a .yaml file, or a shipped grid: {', '.join(shipped_grids())}")
    add("--store", required=True, action="append", help="the features, from refavs-extract; a folder "
        "or a URL; given several times as NAME=STORE, each trial runs on each of them")
    add("--out", type=Path, help="the sweep's folder; default: runs/NAME")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="replace a setting of the grid's base; 'refavs-sweep settings' lists all settings; may be "
        "given several times")
    add("--weights-dir", type=Path, metavar="DIR", help="pretrained weights that trials start "
        "from, in the form that refavs-extract takes")
    add("--cache", type=Path, metavar="DIR", help="keep what is read of a remote store in this folder "
        "of each machine, shared by all its trials and sweeps; default: REFAVS_STORE_CACHE, else none")
    add("--cache-gb", type=float, metavar="N",
        help="size of that folder at most; default: REFAVS_STORE_CACHE_GB, else 100")
    add("--any-store", action="store_true", help="accept a train.init checkpoint that was trained on other features")
    add("--dry-run", action="store_true",
        help="list the trials, done and to do, and their cost; takes seconds and writes nothing")
    add("--retry-failed", action="store_true",
        help="resume failed trials from their last epoch; by default they stay failed")
    add("--rerun", action="append", default=[], metavar="KEY", help="discard the result of the "
        "trial whose key starts with KEY and run it again; may be given several times")
    add("--register", metavar="NAME",
        help="register the model of the best trial by J on val under this name in MLflow, as "
        "models:/NAME@champion, or @challenger if another sweep has the champion")
    add("--address", help="a running Ray cluster; default: one on this machine for this sweep")
    add("--max-concurrent", type=int, metavar="N",
        help="largest number of trials at once; default: as many as the processors allow")
    add("--cpus-per-trial", type=float, default=1.0, metavar="N", help="processors per trial, or per worker of a trial")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where trials run; auto takes the GPUs of this machine or cluster, if any")
    add("--gpus-per-trial", type=_gpus, metavar="N|auto", help="GPUs per trial, or a share of one; "
        "default: 1 on a GPU; auto puts as many trials on each GPU as its memory allows for the "
        "largest, which uses GPUs better than several workers per trial (not tried on a GPU yet)")
    add("--fuse", type=_fuse, default=1, metavar="K|auto",
        help="train up to K trials that read the same batches in one process, reading each batch once; "
        "auto: the largest K that keeps every slot busy")
    add("--tracking-uri", metavar="URI", help="MLflow server or database; default: "
        "MLFLOW_TRACKING_URI, else mlflow.db beside the sweep's folder")
    add("--notify", metavar="URL", help="post a JSON message to this web hook when a trial fails and "
        "when the sweep ends")
    add("--experiment", metavar="NAME", help="MLflow experiment of a new sweep; default: "
        "MLFLOW_EXPERIMENT_NAME, else the name of the sweep's folder")
    add("--tag", action="append", default=[], metavar="NAME=VALUE", help="a tag of all runs in MLflow, "
        "beside those of the JSON object MLFLOW_RUN_TAGS; may be given several times")
    return parser


def _fuse(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a whole number from 1, or auto")
    return int(text)


def _gpus(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a number from 0, or auto") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-sweep; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == [STATUS]:
        from experiments.sweep.status import main as status

        return status(arguments[1:])
    if arguments[:1] == [SETTINGS]:
        from experiments.grid.listing import main as settings

        return settings(arguments[1:])
    if arguments[:1] and arguments[0] in CONTROLS:
        from experiments.sweep.control_cli import main as control

        return control(arguments[0], arguments[1:])
    args = build_parser().parse_args(arguments)
    if args.dry_run:  # the only case that computes in this process
        share_processors()
    return run_command("refavs-sweep", lambda: _sweep(args))


def _sweep(args: argparse.Namespace) -> int:
    if args.grid in (STATUS, SETTINGS, *CONTROLS):
        raise ConfigError(f"no grid is named {args.grid!r}; write 'refavs-sweep {STATUS} SWEEP' to see the progress of "
                          f"a sweep, and 'refavs-sweep {SETTINGS}' to see the settings of a trial; {args.grid} stands "
                          "first where it is a command")  # fmt: skip
    for name in ("max_concurrent", "cpus_per_trial"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; accepted: a number above 0")
    pack_gpus = args.gpus_per_trial == "auto"
    gpus = _gpus_per_trial(args)
    from experiments.cluster.resources import Resources
    from experiments.grid.expand import parse_overrides, read_grid
    from experiments.records.stores import features_in, named_locations, with_stores
    from experiments.sweep.driver import run_sweep
    from experiments.sweep.outcome import Options
    from experiments.tracking import user_settings
    from experiments.training.initial_weights import with_checkpoints, with_weights
    from refavs.store import FeatureStore
    from refavs.store.backends.disk_cache import use_cache

    use_cache(args.cache, args.cache_gb)
    grid = with_weights(read_grid(args.grid, parse_overrides(args.set)), args.weights_dir)
    stores = {name: FeatureStore(place) for name, place in named_locations(args.store).items()}
    store = next(iter(stores.values()))
    grid = with_checkpoints(with_stores(grid, stores), features_in(store), args.any_store)
    out = args.out or Path("runs") / grid.name
    resources = Resources(
        address=args.address, max_concurrent=args.max_concurrent, cpus_per_trial=args.cpus_per_trial,
        gpus_per_trial=gpus, pack_gpus=pack_gpus, fuse=args.fuse,
    )
    _warn_of_slow_bf16(grid, gpus)
    for line in few_per_worker(grid.kinds):
        _warn(line)
    if args.dry_run:
        return _dry_run(grid, store, out, resources, args.retry_failed, args.rerun)
    size = f"a search of {grid.search.plan.budget} points" if grid.search else f"{len(grid.trials)} trials"
    warn(f"sweep {grid.name}: {size} on {' and '.join(args.store)} into {out}")
    options = Options(
        retry_failed=args.retry_failed, rerun=tuple(args.rerun), register=args.register, grid_file=args.grid,
        notify=args.notify, experiment=user_settings.experiment(args.experiment), tags=user_settings.run_tags(args.tag),
    )
    outcome = run_sweep(grid, store, out, resources, user_settings.address(args.tracking_uri), options)
    return _show(grid, store, out, outcome)


def _gpus_per_trial(args: argparse.Namespace) -> float:
    """GPUs of a trial; `auto` starts with a whole one and is measured later."""
    from extract.pipeline.local_ray import chosen_gpus

    asked = 1.0 if args.gpus_per_trial == "auto" else args.gpus_per_trial
    if asked is not None and not 0 <= asked < math.inf:
        raise ConfigError(f"--gpus-per-trial is {asked}; accepted: 0 or a number above it")
    return chosen_gpus(args.device, asked, args.address, "--gpus-per-trial", _warn)


def _warn_of_slow_bf16(grid: "Grid", gpus_per_trial: float) -> None:
    """Warns about the cost of bf16 on a processor without instructions for it, if the grid asks for bf16."""
    from refavs.machine.accelerator import slow_bf16

    trials = [trial.config for trial in grid.kinds]
    named = any(config.train.precision == "bf16" and not (config.resources.gpus or gpus_per_trial) for config in trials)
    if named and (factor := slow_bf16("cpu")) is not None:
        _warn(f"bf16 takes {factor:.1f} times as long as fp32 (measured now on a convolution), as this processor has "
              "no instructions for it; leave out train.precision, or set it to fp32")  # fmt: skip


def _warn(line: str) -> None:
    warn(f"refavs-sweep: {line}")


def few_per_worker(trials: "Sequence[Trial]") -> list[str]:
    """A warning about trials with too many workers: each gets at most one expression of a batch."""
    few = [trial for trial in trials if 1 < trial.config.resources.workers >= trial.config.train.batch_size]
    if not few:
        return []
    name, config = few[0].name, few[0].config
    more = f" and {len(few) - 1} more" if len(few) > 1 else ""
    return [f"warning: trial {name!r}{more} shares a batch of {config.train.batch_size} expressions among "
            f"{config.resources.workers} workers, which gains nothing; use --set resources.workers=1 and run more "
            "trials at once (on GPUs: --gpus-per-trial auto), or a larger train.batch_size"]  # fmt: skip


def _dry_run(
    grid: "Grid", store: "FeatureStore", out: Path, resources: "Resources", retry: bool, rerun: Sequence[str]
) -> int:  # fmt: skip
    from rich import box
    from rich.table import Table

    from experiments.records.ledger import KEY_LENGTH, Ledger
    from experiments.records.stores import features_in
    from experiments.sweep.added import with_added
    from experiments.sweep.dry_run import show
    from experiments.sweep.model_check import check_models
    from experiments.sweep.outcome import num_to_come, to_run
    from experiments.sweep.search import Search
    from refavs.terminal.console import wide_console

    ledger = Ledger(out)
    grid = with_added(grid, ledger, store)
    remarks = check_models(grid, store)
    search = Search(grid, ledger, features_in(store)) if grid.search else None
    entries = search.entries if search else ledger.entries(grid.trials, features_in(store))
    table = Table(title=f"sweep {grid.name} in {out}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("trial", "seed", "key", "epochs", "state"):
        table.add_column(column)
    for entry in entries:
        config = entry.trial.config
        table.add_row(
            entry.trial.name, str(config.seed), entry.key[:KEY_LENGTH], str(config.train.epochs), entry.state
        )
    keys_to_do = {entry.key for entry in [*to_run(entries, retry), *ledger.beginning_with(rerun, entries)]}
    to_come = num_to_come(search, ledger)
    num_to_do = len(keys_to_do) + to_come
    num_failed = sum(entry.state == "failed" and entry.key not in keys_to_do for entry in entries)
    console = wide_console()
    console.print(table)
    if to_run(entries) or to_come:
        kinds = ledger.entries(grid.kinds, features_in(store))
        suggested = [kinds[number % len(kinds)] for number in range(to_come)]
        show(console, [*entries, *suggested], store, resources)
    for line in search.described() if search else ():
        console.print(line)
    for remark in filter(None, (ledger.changes(entries), ledger.elsewhere(entries, store.fingerprint), *remarks)):
        console.print(remark)
    failed = f", {num_failed} failed ({RETRY})" if num_failed else ""
    num_trials = len(entries) + to_come
    num_done = num_trials - num_to_do - num_failed
    console.print(f"{num_done} of {num_trials} trials done{failed}, {num_to_do} to do; nothing was written")
    return Exit.COMPLETE


def _where_to_look(uri: str, out: Path) -> str:
    """The tracking address, and for a database the command that shows it."""
    from experiments.tracking.client import default_tracking_uri
    from experiments.tracking.connection import without_password
    from experiments.tracking.database import database_at

    uri = without_password(uri)
    database = database_at(uri)
    if database is None or database.suffix != ".db":
        return uri
    place = str(out if uri == default_tracking_uri(out) else database)
    return f"{uri}; to view it: infra/mlflow-ui.sh {shlex.quote(place)}"


def _show(grid: "Grid", store: "FeatureStore", out: Path, outcome: "Outcome") -> int:
    from experiments.records.ledger import Ledger
    from experiments.records.stores import features_in, store_of
    from experiments.report.summary import summary_tables
    from experiments.report.text import terminal
    from experiments.sweep.search import Search
    from refavs.data.splits import Splits
    from refavs.terminal.console import wide_console

    console = wide_console()
    for table in summary_tables(grid.name, outcome.entries, outcome.controls, Splits.of(store.attributes)):
        console.print(terminal(table))
    if any(store_of(trial, store).random_weights for trial in grid.kinds):
        console.print(
            "RANDOM FEATURES: at least one encoder of this store has random weights; compare rows with each other, not "
            "with published numbers", style="bold yellow",
        )
    best = Search(grid, Ledger(out), features_in(store)).best() if grid.search else None
    best_line = [f"best point: {best[0]}: {grid.search.plan.metric} {best[1]:.5g}"] if best and grid.search else []
    for line in [*best_line, *_summary(outcome)]:
        console.print(line)
    console.print(f"pictures and checkpoints: {out}/trials")
    if any(entry.state == "finished" for entry in outcome.entries):
        console.print(f"tables with intervals, and figures: refavs-report {shlex.quote(str(out))}")
    console.print(f"MLflow: {_where_to_look(outcome.tracking_uri, out)}")
    failures = outcome.failures
    for title, reason in failures.items():
        console.print(f"failed: {title}: {reason}", style="red")
    if failures:
        console.print(f"{len(failures)} of {len(outcome.entries)} trials failed; the same command leaves them failed; "
                      f"{RETRY}")  # fmt: skip
    if outcome.unsent:
        why = f" ({outcome.unsent_reason})" if outcome.unsent_reason else ""
        console.print(f"NOT in MLflow yet{why}: {', '.join(outcome.unsent)}; all data is kept in {out}, and the same "
                      "command sends it", style="bold yellow")  # fmt: skip
    for title, why in outcome.refused.items():
        console.print(f"MLflow REFUSES {title}: {why}; all data is kept in {out}; remove the reason before you run the "
                      "same command again", style="bold yellow")  # fmt: skip
    if outcome.interrupted:
        console.print("stopped as asked; run the same command again to resume")
        return Exit.INTERRUPTED
    return Exit.FAILURES if failures or outcome.unsent or outcome.refused else Exit.COMPLETE


def _summary(outcome: "Outcome") -> list[str]:
    """The sweep's progress, on one line."""
    states = [entry.state for entry in outcome.entries]
    others = {"failed": "failed", "pruned": "pruned", "stopped": "stopped", "new": "not started"}
    counts = [f"{states.count(state)} {label}" for state, label in others.items() if state in states]
    finished = f"{states.count('finished')} of {len(states)}"
    if outcome.num_ended == 0 and not outcome.interrupted and states.count("finished") == len(states):
        return [f"nothing to do: all {len(states)} trials were finished before"]
    if outcome.num_ended == 0 and not outcome.interrupted and not {"new", "stopped", "running"} & set(states):
        return [f"nothing to do: {finished} trials were finished before, {', '.join(counts)}"]
    return [", ".join([f"{outcome.num_run} trials finished now, {finished} in all", *counts])]
