"""refavs-annotate: makes a benchmark in the layout of Ref-AVS from one's own videos, step by step."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from refavs.terminal.command import CommandParser, run_command

NAME = "refavs-annotate"
# A step is a module with `add_arguments(parser)` and `run(args) -> exit status`.
STEPS = {
    "propose": ("extract.annotate.propose", "finds the scenes of each clip, and candidate masks of the named objects"),
    "track": ("extract.annotate.track", "follows the chosen masks through all seconds"),
    "export": ("extract.annotate.exchange.export_masks", "writes masks and frames for a label tool"),
    "import": ("extract.annotate.exchange.import_masks", "takes back what people changed in a label tool"),
    "agreement": ("extract.annotate.exchange.agreement", "compares the masks of two annotators"),
    "express": ("extract.annotate.sentences.express", "makes sentences about the objects from facts and templates"),
    "pack": ("extract.annotate.benchmark.pack", "writes the benchmark"),
}


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME,
        description="Makes a benchmark in the layout of Ref-AVS from videos: the steps in their order.",
        epilog="examples:\n  refavs-annotate propose PROJECT videos/ --names names.csv\n"
        "  refavs-annotate track PROJECT\n\n"
        "exit status: 0 complete, 2 bad input, 3 finished but some clips failed (listed), 130 interrupted",
    )  # fmt: skip
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, (module, about) in STEPS.items():
        step = steps.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        step.add_argument("project", type=Path, metavar="PROJECT", help="folder of the project, which propose makes")
        import_module(module).add_arguments(step)
        step.set_defaults(run=lambda args, module=module: import_module(module).run(args))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-annotate; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
