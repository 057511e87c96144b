"""refavs-annotate express: sentences about the objects of each clip, from facts and the paper's templates.

A sentence that fits exactly one object, needs each of its cues and compares only what differs clearly is accepted.
Where a fact is unknown, a word is subjective, or a sentence shall refer to nothing, a person decides in `review.csv`.
"""

from argparse import Namespace
from pathlib import Path

from extract.annotate.problems import ended
from extract.annotate.records import ProjectFolder
from extract.annotate.sentences.facts import COLUMNS
from refavs.errors import ConfigError
from refavs.terminal.command import CommandParser
from refavs.terminal.printing import say

NAME = "refavs-annotate express"
NULL_SHARE = 0.083  # of the real benchmark's rows


def add_arguments(parser: CommandParser) -> None:
    """The options of the step."""
    add = parser.add_argument
    add("--facts", type=Path, metavar="CSV", help=f"facts about the objects: columns clip,fid and any of "
        f"{','.join(COLUMNS)}; see the README for what a field may say")  # fmt: skip
    add("--ask", action="store_true", help="ask for the facts that are missing, on the terminal")
    add("--grades", type=Path, metavar="CSV", help="grades to use instead of the paper's: columns template,grade")
    add("--per-clip", type=int, default=6, metavar="N", help="most sentences of a clip, besides those about nothing")
    add("--nulls", type=float, default=NULL_SHARE, metavar="P", help="share of sentences that refer to nothing")
    add("--clips", metavar="ID,...", help="these clips only")
    add("--review", type=Path, metavar="CSV", help="take the answers in a filled-in review.csv, and make no sentences")


def run(args: Namespace) -> int:
    """Makes sentences, or takes answers; returns the exit status."""
    from extract.annotate.exchange.exports import chosen_clips
    from extract.annotate.sentences.clip_sentences import REVIEW, has_answers, take_review, write_review
    from extract.annotate.sentences.expressing import ask, express, mix_lines, read_grades
    from extract.annotate.sentences.facts import read_facts, state

    if args.per_clip < 1 or not 0 <= args.nulls < 1:
        raise ConfigError(f"--per-clip is {args.per_clip}, --nulls {args.nulls}; accepted: 1 or more, and 0 to below 1")
    project = ProjectFolder(args.project)
    every, problems = chosen_clips(project, None)
    odd: list[str] = []
    clip_ids = chosen_clips(project, args.clips)[0] if args.clips else every
    if args.review is None and has_answers(project.path / REVIEW):
        raise ConfigError(f"{project.path / REVIEW} has answers; take them first by {NAME} {args.project} --review "
                          f"{project.path / REVIEW}, or remove the file")  # fmt: skip
    if args.review is not None:
        counts, odd = take_review(project, args.review, every)
        say(f"{args.review}: " + ", ".join(f"{count} {answer}" for answer, count in counts.items()))
    else:
        grades = read_grades(args.grades) if args.grades is not None else {}
        if args.facts is not None:
            told, odd = read_facts(args.facts, project, every)
            for clip_id, facts in told.items():
                state(project.clip(clip_id), facts)
        if args.ask:
            ask(project, clip_ids)
        for line in mix_lines(express(project, clip_ids, args.per_clip, args.nulls, grades)):
            say(line)
    if args.review is None or not odd:  # else the file keeps the rows that could not be used
        queued = write_review(project, every)
        say(f"{queued} sentences wait for a person's yes or no" + (
            f" in the column answer of {project.path / REVIEW}; then {NAME} {args.project} --review that file"
            if queued else ""
        ))  # fmt: skip
    return ended(NAME, [*problems, *odd])
