"""refavs-sweep cancel, hold, resume and add: steer a running sweep from another terminal."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.grid.file import grid_text
from experiments.sweep.control import ask, drop_grid, keep_grid
from experiments.sweep.progress import read_sweep
from refavs.errors import ConfigError
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say

WAIT_S = 60.0  # for the driver, which may be starting Ray or checking a model
ABOUT = {
    "cancel": "Gives up trials of a running sweep; without KEY, stops the sweep after the running epochs, as Ctrl-C "
    "does. A trial that was given up does not run again, unless --rerun KEY asks for it.",
    "hold": "Starts no more trials of a running sweep until refavs-sweep resume.",
    "resume": "Lets a held sweep go on.",
    "add": "Adds the trials of another grid to a running sweep. Later calls of the sweep's own command include them.",
}  # fmt: skip


def build_parser(action: str) -> CommandParser:
    """The command line of one of the commands."""
    parser = CommandParser(prog=f"refavs-sweep {action}", description=ABOUT[action])
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="the sweep's folder, for example runs/smoke")
    if action == "cancel":
        parser.add_argument("keys", nargs="*", metavar="KEY", help="the beginning of a trial's key, as refavs-sweep "
                            "status shows it; default: the whole sweep")
    if action == "hold":
        parser.add_argument("--now", action="store_true", help="also stop the running trials after their present "
                            "epochs, which frees their processors and GPUs; they go on from there")
    if action == "add":
        parser.add_argument("grid", metavar="GRID", help="a .yaml file, or a shipped grid")
        parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                            help="replace a setting of the grid's base; may be given several times")
    return parser


def main(action: str, argv: Sequence[str], wait_s: float = WAIT_S) -> int:
    """Sends the request and shows the driver's answer; returns the exit status."""
    args = build_parser(action).parse_args(argv)
    return run_command(f"refavs-sweep {action}", lambda: _send(action, args, wait_s))


def _send(action: str, args: argparse.Namespace, wait_s: float) -> int:
    sweep = read_sweep(args.sweep)
    if not sweep.active:
        again = "; run its command with a larger grid instead" if action == "add" else ""
        raise ConfigError(f"no refavs-sweep is running on {args.sweep}{again}")
    request: dict[str, Any] = {"keys": getattr(args, "keys", []), "now": getattr(args, "now", False)}
    if action == "add":
        name, text, _ = grid_text(args.grid)
        request |= {"grid": keep_grid(args.sweep, name, text), "set": args.set}
    answer = ask(args.sweep, wait_s, action=action, **request)
    if answer is None:
        raise ConfigError(f"the refavs-sweep that runs on {args.sweep} has not answered for {wait_s:.0f} s; it may be "
                          f"busy and act on it later; refavs-sweep status {args.sweep} shows it")  # fmt: skip
    if not answer["ok"]:
        drop_grid(args.sweep, request.get("grid", ""))
        raise ConfigError(answer["told"])
    say(answer["told"])
    return Exit.COMPLETE
