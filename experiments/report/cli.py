"""refavs-report: results of a sweep in the layout of the paper's tables, with intervals, figures and pictures."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refavs.errors import ConfigError, RefAVSError
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from experiments.report.contents import ReportOptions
    from experiments.report.tables import Report

ARTIFACTS, FIGURES, PAGE = "report", "figures", "report.html"
EPILOG = """examples:
  refavs-report runs/table4                                     into runs/table4/report, and to MLflow
  refavs-report runs/table4 --protocol released --published     by the authors' protocol, beside published numbers
  refavs-report runs/a runs/b --mixed --out both                two sweeps whose stores differ, marked
"""


def build_parser() -> CommandParser:
    """The command line of refavs-report."""
    parser = CommandParser(prog="refavs-report", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("sweeps", metavar="SWEEP", nargs="+", type=Path, help="a folder that refavs-sweep wrote")
    add("--out", type=Path, metavar="DIR", help="where to write the report; default: SWEEP/report of "
        "the first sweep")
    add("--protocol", action="append", default=[], metavar="NAME", dest="protocols",
        help="canonical (the default), released, per_frame, per_expression or davis; given several "
        "times, each gets its tables, and figures show the first")
    add("--published", action="store_true", help="published rows beside ours, marked as such")
    add("--latex", action="store_true", help="also write report.tex")
    add("--mixed", action="store_true", help="allow runs of different stores in one table, and several "
        "protocols in one more; each such row is marked")
    add("--reference", metavar="NAME", help="the row that others are compared with; default: `full` "
        "or else the first row")
    add("--store", metavar="STORE", help="the features whose pictures the gallery shows; default: "
        "the sweep's store, if it is a folder and not a URL")
    add("--tracking-uri", help="MLflow server or database with the sweep's run; default: the database "
        "beside or in the sweep's folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-report; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command("refavs-report", lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    from experiments.report.contents import build_report
    from experiments.report.figures import report_figures
    from experiments.report.page import render

    out = args.out or args.sweeps[0] / "report"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder, or one that does not exist")
    if args.out is None and not out.resolve().is_relative_to(args.sweeps[0].resolve()):
        raise ConfigError(f"{out} is a link to {out.resolve()}, outside of the sweep's folder; give the folder for the "
                          "report by --out")
    report = build_report(args.sweeps, _options(args))
    drawings = report_figures(report)
    files = {PAGE: render(report, drawings).encode(), **written(report, args.latex)}
    for drawing in drawings:
        files[f"{FIGURES}/{drawing.name}.svg"] = drawing.svg().encode()
        files[f"{FIGURES}/{drawing.name}.png"] = drawing.png()
    write(out, files)
    for warning in report.warnings:
        say(warning)
    for name in files:
        if not name.startswith(FIGURES):
            say(str(out / name))
    say(f"{len(drawings)} figures as SVG and PNG: {out / FIGURES}")
    return _upload(args.sweeps[0], args.tracking_uri, out, list(files))


def _options(args: argparse.Namespace) -> "ReportOptions":
    from experiments.report.contents import ReportOptions
    from refavs.metrics import histograms_of

    protocols = tuple(dict.fromkeys(args.protocols or ["canonical"]))
    histograms_of(protocols)
    return ReportOptions(protocols=protocols, published=args.published, mixed=args.mixed, reference=args.reference,
                   store=args.store)  # fmt: skip


def written(report: "Report", with_latex: bool) -> dict[str, bytes]:
    """The tables of a report, by file name."""
    from experiments.report import text

    found = {"report.md": text.markdown(report), "report.csv": text.csv_text(report)}
    found |= {"report.tex": text.latex(report)} if with_latex else {}
    return {name: content.encode() for name, content in found.items()}


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes all files or none; writes the page last."""
    from refavs.files.atomic import write_atomically
    from refavs.files.staged import staged

    with staged(out, PAGE) as folder:
        for name, content in files.items():
            write_atomically(folder / name, content)


def _upload(sweep: Path, tracking_uri: str | None, out: Path, names: Sequence[str]) -> int:
    """Uploads the files to the sweep's run in MLflow; a failure is only reported, since the report is complete."""
    from experiments.records.ledger import Ledger
    from experiments.tracking.artifacts import upload
    from experiments.tracking.connection import without_password
    from experiments.tracking.place import follow_artifacts, guard_of, tracking_address

    facts = Ledger(sweep).sweep
    run_id = facts.get("run_id")
    try:
        if not run_id:
            raise ConfigError(f"{sweep} does not say which run of MLflow it is; run its refavs-sweep command again")
        uri = tracking_address(sweep, facts, tracking_uri)
        follow_artifacts(sweep, facts, uri)
        upload(uri, str(run_id), out, names, ARTIFACTS, guard_of(sweep, uri, tracking_uri))
    except RefAVSError as error:
        warn(f"refavs-report: the report is not in MLflow: {' '.join(str(error).split())}")
        return Exit.FAILURES
    say(f"MLflow: {without_password(uri)}, run {run_id}, artifacts {ARTIFACTS}/")
    return Exit.COMPLETE
