"""Published numbers on Ref-AVS Bench, for `--published`. Rows name the protocol, which differs between them.

J and F in %, S as a fraction, as printed: Mix is not always the mean of the two splits. Sources: Ref-AVS
(arXiv 2407.10957v1), Tables 3 and 4, supplement Tables 2 and 3; others as each row names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from refavs.data.layouts.ref_avs_metadata import TEST_N, TEST_S, TEST_U
from refavs.data.splits import MIX

# The protocol of a row if the authors' code shows it, else this.
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the paper's Tables 3 or 4; None for values that are not printed.

    Attributes:
        values: values by split, or `mix`, and measure.
        protocol: one of `refavs.metrics.PROTOCOLS`, or `NOT_STATED`.
        removed: for Table 4, the removed parts of the model.
    """

    label: str
    values: Mapping[tuple[str, str], float]
    protocol: str = "released"
    removed: tuple[str, ...] = ()


def _row(
    label: str, seen: tuple[float, float] | None, unseen: tuple[float, float] | None,
    mix: tuple[float, float] | None, null: float | None, protocol: str = "released", removed: tuple[str, ...] = (),
) -> Published:  # fmt: skip
    known = {TEST_S: seen, TEST_U: unseen, MIX: mix, TEST_N: null and (null,)}
    values = {
        (group, measure): value for group, found in known.items() if found
        for measure, value in zip("S" if group == TEST_N else "JF", found, strict=True)
    }  # fmt: skip
    return Published(label=label, values=values, protocol=protocol, removed=removed)


EEMC = _row("EEMC (Ref-AVS, ECCV 2024)", (34.20, 51.3), (49.54, 64.8), (41.87, 58.1), 0.007)

MAIN = (
    _row("AVSBench (ECCV 2022)", (21.22, 45.7), (27.67, 50.9), (24.45, 48.3), None),
    _row("AVSBench + text", (23.20, 51.1), (32.36, 54.7), (27.78, 52.9), 0.208),
    _row("AVSegFormer (AAAI 2024)", (29.16, 42.3), (32.71, 45.1), (30.94, 43.7), None),
    _row("AVSegFormer + text", (33.47, 47.0), (36.05, 50.1), (34.76, 48.6), 0.171),
    _row("GAVS (AAAI 2024)", (24.85, 45.5), (27.86, 46.0), (26.36, 45.7), None),
    _row("GAVS + text", (28.93, 49.8), (29.82, 49.7), (29.38, 49.8), 0.190),
    _row("ReferFormer (CVPR 2022)", (27.46, 47.7), (24.94, 50.4), (26.20, 49.1), None),
    _row("ReferFormer + audio", (31.31, 50.1), (30.40, 48.8), (30.86, 49.5), 0.176),
    _row("R2VOS (ICCV 2023)", (21.34, 30.9), (23.91, 43.1), (22.63, 37.0), None),
    _row("R2VOS + audio", (25.01, 41.0), (27.93, 49.8), (26.47, 45.4), 0.183),
    EEMC,
    _row("SAMA", (39.22, 56.2), (47.50, 56.6), None, 0.130, NOT_STATED),
    _row("TSAM (CVPR 2025)", (43.43, 56.8), (54.58, 66.4), (49.01, 61.6), 0.017, NOT_STATED),
    _row("SAM2-LOVE (CVPR 2025)", (43.5, 51.9), (66.5, 72.3), (55.0, 62.1), 0.23, NOT_STATED),
    _row("Crab (CVPR 2025)", None, (45.6, 63.0), None, None, "per_frame"),
    _row("OISA-1B (ICCV 2025)", (51.7, 58.7), (58.3, 65.1), (54.5, 61.4), 0.098, NOT_STATED),
    _row("Omni-R1-7B (arXiv 2505.20256)", (43.0, 51.4), (71.3, 77.0), None, None, NOT_STATED),
    _row("SimToken (ICASSP 2026)", (72.0, 81.3), (69.8, 79.1), (70.9, 80.2), 0.012, "per_expression"),
)

ABLATIONS = (
    EEMC,
    _row("EEMC without text", (23.67, 46.8), (37.19, 64.1), (30.43, 55.5), 0.011, removed=("text",)),
    _row("EEMC without audio", (27.27, 49.2), (43.64, 65.6), (35.46, 57.4), 0.010, removed=("audio",)),
    _row("EEMC without cached memory", (25.30, 49.4), (36.73, 66.0), (31.05, 57.7), 0.009,
         removed=("cached memory",)),
    _row("EEMC without modality encoding", (27.20, 47.0), (44.97, 63.7), (36.09, 55.4), 0.009,
         removed=("modality encoding",)),
)  # fmt: skip

# The supplement's Table 2, "mIoU" in %; the splits are not stated.
PARTS = {
    "grade": {"1+2": 39.27, "3": 37.78, "4": 35.31, "5": 33.39},
    "length": {"<=4": 39.66, "5-8": 37.00, "9-12": 33.74, ">12": 29.61},
    "dimension": {"spatial": 33.83, "acoustic": 26.07, "spatial+temporal": 41.01, "acoustic+temporal": 32.30},
}

# The supplement's Table 3, "mIoU" in % and F; the first row's 40.87 is 41.87 in Table 3, with the same F.
ENCODERS = (
    _row("RoBERTa + VGGish", None, None, (40.87, 58.1), None),
    _row("text Flan-T5", None, None, (35.17, 54.7), None),
    _row("text LanguageBind", None, None, (33.96, 54.0), None),
    _row("audio LanguageBind", None, None, (38.23, 56.1), None),
)
