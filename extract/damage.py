"""Verifies a store, and prints what is damaged."""

from refavs.store.folders import open_folder
from refavs.store.format.commits import record_files
from refavs.store.format.schema import root_attributes
from refavs.store.verify import Verdict, verify
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import readable_bytes, say


def verified(location: str) -> Verdict:
    """Verifies a store with a progress bar."""
    folder = open_folder(location)
    root_attributes(folder)
    with ProgressBar("verify", len(record_files(folder)), "shards") as bar:
        return verify(location, lambda name: bar.advance(note=name))


def report(location: str, verdict: Verdict) -> None:
    """Prints the result of `verify`."""
    for name in verdict.uncommitted:
        whose = f"of {verdict.writer}, which is at work" if verdict.writer else "left by an interrupted run"
        say(f"uncommitted: {name} ({whose}; readers do not see it)")
    for damage in verdict.damage:
        keys = f" [{', '.join(damage.keys)}]" if damage.keys else ""
        say(f"damaged: {damage.where}{keys}: {damage.problem}")
    size = readable_bytes(verdict.num_bytes)
    say(f"{location}: {verdict.num_rows} rows, {size} hashed, {len(verdict.damage)} damaged")
