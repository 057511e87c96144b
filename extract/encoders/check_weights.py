"""refavs-extract --check-weights: which pretrained weights of a preset a folder has, and what to fetch."""

import hashlib
import json
import zipfile
from pathlib import Path

from extract.choices import LEVELS
from extract.encoders import ClipEncoder, Encoder
from extract.encoders.presets import Preset, build_encoders
from extract.encoders.weights import OtherArchitecture, WeightPart, WeightSource
from refavs.errors import ConfigError, WeightsError
from refavs.model.feature_sizes import FeatureSizes, MapSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.model.pretrained import FETCH, FOLDER, Mask2Former
from refavs.terminal.command import Exit
from refavs.terminal.printing import say

ZIP = b"PK\x03\x04"
PICKLES = (b"\x80", ZIP)
NAME_WIDTH = 30


def check_weights(preset: Preset, folder: Path) -> int:
    """Prints the state of each file that the preset reads, and returns the exit status.

    Returns:
        `Exit.COMPLETE` where an extraction with this folder finds all it needs, else `Exit.USAGE`.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--check-weights {folder} is no folder; make it and fetch weights into it")
    levels = LEVELS[:1] if preset.visual.imagenet else LEVELS
    encoders = build_encoders(preset, WeightSource(folder=folder), levels, "fp32")
    each: tuple[Encoder, ...] = (encoders.visual, encoders.audio, encoders.text)
    needed = [part for encoder in each for part in encoder.weight_parts()]
    lacking = sum([not _good(part, folder) for part in needed])
    if preset.visual.shipped is None and "pixel_decoder" in levels:
        _good(_decoder_part(preset, encoders.visual, folder), folder)
    if lacking:
        say(f"{folder} lacks {lacking} of {len(needed)} files that refavs-extract --preset {preset.name} reads")
        return Exit.USAGE
    say(f"{folder} has all that refavs-extract --preset {preset.name} reads")
    return Exit.COMPLETE


def _good(part: WeightPart, folder: Path) -> bool:
    """Prints a line about a part; loads it as its encoder does, so that what is found good is good."""
    fetch = f"fetch it by: {part.fetch.format(folder=folder)}"
    try:
        path = part.find()
    except WeightsError:
        say(f"{part.name:{NAME_WIDTH}} missing; {fetch}")
        return False
    if path is None:
        say(f"{part.name:{NAME_WIDTH}} not needed, comes with the package")
        return True
    with path.open("rb") as file:
        named = f"{path}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    try:
        part.load()
    except WeightsError as error:
        say(f"{part.name:{NAME_WIDTH}} {_problem(path, error)}: {named}; {error}; {fetch}")
        return False
    say(f"{part.name:{NAME_WIDTH}} found: {named}")
    return True


def _problem(path: Path, error: WeightsError) -> str:
    """What is wrong with a file that cannot be loaded, in a word or two."""
    if isinstance(error, OtherArchitecture):
        return "wrong size"
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix == ".safetensors":
        if start.startswith(PICKLES):
            return "pickle"
        return "truncated" if _safetensors_bytes(path) > path.stat().st_size else "damaged"
    if start.startswith(ZIP) and not zipfile.is_zipfile(path):
        return "truncated"
    return "refused pickle" if start.startswith(PICKLES) else "damaged"


def _safetensors_bytes(path: Path) -> int:
    """Bytes that a safetensors file should have by its header, or at least where that is cut; 0 where it has none."""
    with path.open("rb") as file:
        length, start = int.from_bytes(file.read(8), "little"), file.read(1)
        if start != b"{":
            return 0
        if 8 + length > path.stat().st_size:
            return 8 + length
        header = start + file.read(length - 1)
    try:
        ends = [facts["data_offsets"][1] for name, facts in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0
    return 8 + length + max(ends, default=0)


def _decoder_part(preset: Preset, visual: ClipEncoder, folder: Path) -> WeightPart:
    """What a head with `model.decoder_weights=mask2former` reads of the same file; an extraction does without."""
    maps = tuple(
        MapSize(name=spec.path.split("/")[3], path=spec.path, channels=spec.shape[1], height=spec.shape[2],
                width=spec.shape[3])
        for spec in visual.specs() if spec.path.startswith("clips/visual/pixel_decoder/")
    )  # fmt: skip

    def load() -> None:
        options = EEMCOptions(decoder_weights="mask2former", audio=False, text=False)
        model = EEMC(options, FeatureSizes(audio=None, text=None, maps=maps))
        same_maps = {"visual/pixel_decoder": {"weights": model.pretrained_stamp(folder / FOLDER)}}
        for part in model.load_pretrained(folder / FOLDER, same_maps):
            say(f"{'':{NAME_WIDTH}} the head starts from random weights: {part}")

    return WeightPart(
        name="head, transformer decoder", find=lambda: Mask2Former.within(folder).path, load=load,
        fetch=f"{FETCH} {{folder}}/{FOLDER}, for model.decoder_weights=mask2former alone",
    )
