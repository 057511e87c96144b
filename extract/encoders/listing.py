"""refavs-extract --list-encoders: input, output and size of each encoder."""

from extract.encoders.protocol import Encoder, EncoderSetup
from extract.encoders.registry import all_encoders, all_families
from extract.encoders.weights import WeightSource
from refavs.terminal.command import Exit
from refavs.terminal.printing import say

SECONDS = 10


def list_encoders() -> int:
    """Prints a few lines for each encoder, without network access and without reading weights."""
    for name, encoder in all_encoders(EncoderSetup(weights=WeightSource(kind="random"))).items():
        for line in described(name, encoder):
            say(line)
    for name, about in all_families().items():
        say(f"{name}:MODEL: {about}")
    return Exit.COMPLETE


def described(name: str, encoder: Encoder) -> list[str]:
    """One line about an encoder, then one per level with its arrays for a clip of 10 s, or for a text."""
    unit = "text" if encoder.modality == "text" else f"clip of {SECONDS} s"
    lines = [f"{name}: {encoder.modality}, takes {encoder.takes}, {encoder.num_parameters:,} parameters, licence "
             f"{encoder.licence}, weights {encoder.weights}"]  # fmt: skip
    for level, specs in encoder.arrays(SECONDS).items():
        shapes = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))} {spec.dtype}" for spec in specs)
        num_bytes = sum(spec.row_bytes for spec in specs)
        lines.append(f"    {level}{': ' if level else ''}{shapes}; {num_bytes / 1e6:.3g} MB a {unit}")
    return lines
