"""refavs-extract --check-weights: lists the pretrained weights in a folder, and what to download."""

import hashlib
from pathlib import Path

from extract.encoders.streams import StreamSet
from extract.encoders.weights import WeightPart
from refavs.errors import ConfigError, WeightsError
from refavs.terminal.command import Exit
from refavs.terminal.printing import say

NAME_WIDTH = 30


def check_weights(streams: StreamSet, folder: Path) -> int:
    """Prints the state of each file that the encoders read, and returns the exit status.

    Returns:
        `Exit.COMPLETE` if an extraction with this folder finds everything it needs, else `Exit.USAGE`.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"--check-weights {folder} is not a folder; create it and download weights into it")
    good = [_is_good(part, folder) for encoder in streams.encoders.values() for part in encoder.weight_parts()]
    names = ", ".join(streams.encoders)
    if not all(good):
        say(f"{folder} lacks {good.count(False)} of {len(good)} files that {names} read")
        return Exit.USAGE
    say(f"{folder} has all that {names} read")
    return Exit.COMPLETE


def _is_good(part: WeightPart, folder: Path) -> bool:
    """Prints a line about a file; checks it by loading it as its encoder does."""
    name, fetch = f"{part.name:{NAME_WIDTH}}", f"fetch it by: {part.fetch.format(folder=folder)}"
    try:
        path = part.find()
    except WeightsError:
        say(f"{name} missing; {fetch}")
        return False
    if path is None:
        say(f"{name} not needed, comes with the package")
        return True
    try:
        part.load()
    except WeightsError as error:
        say(f"{name} cannot be used: {error}; {fetch}")
        return False
    with path.open("rb") as file:
        say(f"{name} found: {path}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return True
