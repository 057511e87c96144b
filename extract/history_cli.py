"""refavs-store tag, log and diff: name the present content of a store, and compare it with another."""

import argparse
from datetime import UTC, datetime

from refavs.store.contents import Contents, contents_of, differences, new_tag, tags_of
from refavs.store.folders import open_folder
from refavs.terminal.command import Exit
from refavs.terminal.printing import say


def tag(args: argparse.Namespace) -> int:
    """Tags a store."""
    made = new_tag(args.store, args.name, args.message, write=not args.dry_run)
    done = "would be tagged" if args.dry_run else "is tagged"
    say(f"{args.store} {done} {made['name']}: {_summary(made)}")
    return Exit.COMPLETE


def log(args: argparse.Namespace) -> int:
    """Prints the tags of a store, oldest first, with what changed in between, and what has changed since."""
    before: Contents | None = None
    for one in tags_of(open_folder(args.store)):
        when = datetime.fromtimestamp(one["time_s"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        say(f"{when}  {one['name']}  {_summary(one)}  {one['message']}".rstrip())
        _changes(before, one)
        before = one
    now = contents_of(args.store)
    say(f"now  {_summary(now)}")
    _changes(before, now)
    return Exit.COMPLETE


def diff(args: argparse.Namespace) -> int:
    """Prints how two stores or tags differ; the exit status is 3 if they do."""
    found = differences(contents_of(args.first), contents_of(args.second))
    for difference in found:
        for line in difference.lines(args.first, args.second):
            say(line)
    if not found:
        say(f"{args.first} and {args.second} have the same content")
    return Exit.FAILURES if found else Exit.COMPLETE


def _changes(before: Contents | None, now: Contents) -> None:
    if before is not None:
        found = differences(before, now)
        for difference in found:
            counts = ((len(difference.second), "added"), (len(difference.first), "gone"),
                      (len(difference.changed), "changed"))  # fmt: skip
            say(f"    {difference.what}: {', '.join(f'{count:,} {word}' for count, word in counts if count)}")
        if not found:
            say("    no change")


def _summary(contents: Contents) -> str:
    streams = [name for name in contents["streams"] if "/" in name]
    return (f"{contents['fingerprint']}, {len(contents['clips']):,} clips, {len(streams)} streams, "
            f"{sum(contents['expressions'].values()):,} expressions")  # fmt: skip
