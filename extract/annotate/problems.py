"""How a step ends that could not use some of its input: a line each, and the rest is done."""

from collections.abc import Sequence

from refavs.terminal.command import Exit
from refavs.terminal.printing import warn

_SHOWN = 20


def ended(name: str, problems: Sequence[str]) -> Exit:
    """Prints the first problems; returns the exit status of the step."""
    for line in problems[:_SHOWN]:
        warn(f"{name}: {line}")
    if len(problems) > _SHOWN:
        warn(f"{name}: ... and {len(problems) - _SHOWN:,} more")
    return Exit.FAILURES if problems else Exit.COMPLETE
