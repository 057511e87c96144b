"""refavs-sweep status: shows the progress of a sweep, running or not, from its folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.sweep.live_table import progress_table
from experiments.sweep.progress import RUNNABLE, Sweep, counts, duration, read_sweep, seconds_left, typical_seconds
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.console import wide_console

NAME = "status"


def build_parser() -> CommandParser:
    """The command line of refavs-sweep status."""
    parser = CommandParser(prog=f"refavs-sweep {NAME}", description=__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="the sweep's folder, for example runs/smoke")
    return parser


def main(argv: Sequence[str]) -> int:
    """Shows a sweep; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(f"refavs-sweep {NAME}", lambda: _status(args.sweep))


def _status(root: Path) -> int:
    sweep = read_sweep(root)
    console = wide_console()
    title = f"sweep {sweep.facts.get('grid', root.name)} in {root}"
    console.print(progress_table(sweep.trials, title, typical_seconds(sweep.trials), keys=True))
    for line in describe(sweep, root):
        console.print(line)
    return Exit.COMPLETE


def describe(sweep: Sweep, root: Path) -> list[str]:
    """The lines below the table: totals, reasons, and what to do next."""
    to_come = sweep.facts.get("to_come", 0)
    lines = [counts(sweep.trials) + (f", {to_come} yet to be suggested by the search" if to_come else "")]
    unfinished = to_come or any(trial.state in RUNNABLE for trial in sweep.trials)
    if sweep.active:
        left = duration(seconds_left(sweep.trials, to_come)) if unfinished else ""
        lines.append(f"refavs-sweep is running{f', about {left} left' if left else ''}")
        if sweep.facts.get("held"):
            lines.append(f"it is held; refavs-sweep resume {shlex.quote(str(root))} lets it go on")
    elif unfinished:
        lines.append("no refavs-sweep is running; the command that started this sweep resumes it")
    pending = [trial.title for trial in sweep.trials if trial.pending]
    if pending:
        shown = ", ".join(pending[:5]) + " ..." * (len(pending) > 5)
        when = "the same command sends it, or says why MLflow refuses it"
        when = "sent as soon as it answers" if sweep.active else when
        lines.append(f"not in MLflow yet: {len(pending)} trials ({shown}); {when}")
    lines += [f"{trial.state}: {trial.title}: {trial.reason}" for trial in sweep.trials if trial.reason]
    if any(trial.state == "failed" for trial in sweep.trials):
        lines.append("--retry-failed runs failed trials again, from their last epoch")
    if any(trial.state == "finished" for trial in sweep.trials):
        lines.append(f"tables with intervals, and figures: refavs-report {shlex.quote(str(root))}")
    return lines
