"""Figures of a report: their content, reproducible bytes, and untrusted names."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from experiments.report import figures
from experiments.report.drawing import COLOURS, STYLE, Drawing
from experiments.report.svg import SVG, printable, themed
from experiments.report.tables import Bars, BarSeries, Calibration, Curve, Estimate, Line

pytestmark = pytest.mark.long  # for what its fixtures make

HOSTILE = (
    "<script>1</script>", "</style><b>", "_hidden", "$x_{1$ \\frac", "a\"b'c&amp;", "javascript:1", "--> ]]>",
    "\x00\x1b\ud800名前",
)  # fmt: skip
KNOWN = Estimate(value=40.0, low=35.0, high=45.0)
EDGES = (0.0, 0.5, 1.0)


def draw_all() -> list[Drawing]:
    """One of each figure."""
    name = "full"
    series = (
        BarSeries(label=name, estimates=(KNOWN, Estimate(value=None))),
        BarSeries(label="control", estimates=(KNOWN, Estimate(value=7.0)), kind="control"),
    )
    bars = Bars(
        title=name, measure="J (%)", protocol="canonical", groups=(name, "other"), counts=(3, 4), series=series
    )
    line = Line(label=name, x=(0.0, 1.0), estimates=(KNOWN, Estimate(value=50.0)), axis="β, sensitivity")
    curves = [
        Curve(label=name, seed=seed, measure=measure, epochs=(1, 2, 3), values=(0.1, 0.2 + seed / 10, 0.3))
        for seed in (0, 1) for measure in ("train/loss", "val/J")
    ]  # fmt: skip
    calibration = Calibration(
        label=name, edges=EDGES, num_frames=(30, 10), mean_prob=(0.1, 0.9), share_object=(0.2, 0.5)
    )
    found = [
        figures.draw_beta([line], "canonical"), figures.draw_bars("dimensions", bars),
        figures.draw_curves(curves, [name]), figures.draw_calibration([calibration], [name]),
    ]  # fmt: skip
    assert all(found)
    return [drawing for drawing in found if drawing is not None]


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return draw_all()


def words(svg: str) -> str:
    """All text that a figure shows."""
    return " | ".join("".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{{{SVG}}}text"))


def test_same_numbers_give_the_same_bytes(drawings: list[Drawing]) -> None:
    for one, two in zip(drawings[:2], draw_all()[:2], strict=True):
        first = one.svg()
        picture = two.png(50)  # rendered before, it changes nothing
        assert two.svg() == first and one.png(50) == picture
        assert picture.startswith(b"\x89PNG") and "<dc:date>" not in first


def test_figures_name_protocol_measure_and_unit(drawings: list[Drawing]) -> None:
    beta, bars, curves, calibration = (words(drawing.svg()) for drawing in drawings)
    assert "J against β, canonical protocol" in beta and "J (%)" in beta and "full" in beta
    assert "full, canonical protocol" in bars and "full (n=3)" in bars and "40.0" in bars and "none" in bars
    assert "J of the canonical protocol" in curves and "J on val (%)" in curves and "training loss" in curves
    assert "share of frames" in calibration and "ECE 0.175" in calibration
    for drawing in drawings:
        assert "Protocol: " in drawing.caption
        assert len(drawing.alt) > 40 and ("40.0" in drawing.alt or drawing.name in ("curves", "calibration"))


def test_captions_say_whether_there_are_intervals() -> None:
    several, one = Line(label="Seen", x=(0.0,), estimates=(KNOWN,)), Line(label="Seen", x=(0.0,), estimates=(
        Estimate(value=1.0),))  # fmt: skip
    with_intervals, without = figures.draw_beta([several], "canonical"), figures.draw_beta([one], "canonical")
    assert with_intervals is not None and "95 %" in with_intervals.caption
    assert without is not None and "one seed each, so no intervals" in without.caption


def test_text_stays_legible_where_a_page_is_400_px_wide(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        root = ET.fromstring(drawing.svg())
        assert float(root.attrib["width"].removesuffix("pt")) <= 361
        for text in root.iter(f"{{{SVG}}}text"):
            size = re.search(r"font-size: ([\d.]+)px|font: .*?([\d.]+)px", text.attrib["style"])
            assert size is not None and float(size[1] or size[2]) >= 8, text.attrib["style"]


def test_names_are_shown_as_they_are_and_mean_nothing(drawings: list[Drawing]) -> None:
    plain = {element.tag for drawing in drawings for element in ET.fromstring(drawing.svg()).iter()}
    bars = Bars(title="Bars", measure="J (%)", protocol="<b>", groups=HOSTILE,
                series=(BarSeries(label="a", estimates=(KNOWN,) * len(HOSTILE)),))  # fmt: skip
    lines = [Line(label=name, x=(0.0,), estimates=(KNOWN,)) for name in HOSTILE]
    for drawing in (figures.draw_bars("x", bars), figures.draw_beta(lines, "<b>")):
        assert drawing is not None
        for svg in (drawing.svg(), drawing.markup()):
            assert {element.tag for element in ET.fromstring(svg).iter()} <= plain
            for name in HOSTILE:
                assert printable(name) in words(svg)


def test_more_trials_than_colours_keep_the_reference() -> None:
    curves = [Curve(label=f"trial {n}", seed=0, measure="val/J", epochs=(1,), values=(0.5,)) for n in range(12)]
    drawing = figures.draw_curves(curves, ["trial 11"])
    assert drawing is not None and "4 more trials are not drawn" in drawing.caption
    shown = words(drawing.svg())
    assert "trial 11" in shown and "trial 6" in shown and "trial 7" not in shown


def test_a_trial_has_one_colour_in_every_figure() -> None:
    order = ["full", "beta 2", "no_text"]
    bars = Bars(title="", measure="J (%)", protocol="", groups=("g",), series=(
        BarSeries(label="full", estimates=(KNOWN,)), BarSeries(label="no_text", estimates=(KNOWN,)),
        BarSeries(label="centred disc", estimates=(KNOWN,), kind="control")))  # fmt: skip
    curve = Curve(label="no_text", seed=0, measure="val/J", epochs=(1,), values=(0.5,))
    for drawing in (figures.draw_bars("x", bars, order), figures.draw_curves([curve], order)):
        assert drawing is not None
        assert COLOURS[2] in drawing.svg() and COLOURS[1] not in drawing.svg()


def test_no_data_gives_no_figure() -> None:
    assert figures.draw_beta([], "canonical") is None and figures.draw_calibration([]) is None
    assert figures.draw_bars("x", None) is None
    assert figures.draw_bars("x", Bars(title="", measure="", protocol="", groups=(), series=())) is None
    assert figures.draw_curves([Curve(label="a", seed=0, measure="lr", epochs=(1,), values=(1.0,))]) is None


def test_intervals_beyond_0_to_100_do_not_stretch_the_axis() -> None:
    wide = Estimate(value=50.0, low=-200.0, high=300.0)
    for drawing in (
        figures.draw_beta([Line(label="a", x=(0.0, 1.0), estimates=(wide, KNOWN))], "canonical"),
        figures.draw_bars("x", Bars(title="t", measure="J (%)", protocol="p", groups=("g",),
                                    series=(BarSeries(label="s", estimates=(wide,)),))),
    ):  # fmt: skip
        assert drawing is not None
        axes = drawing.figure.axes[0]
        low, high = axes.get_ylim() if drawing.name == "beta" else axes.get_xlim()
        assert low >= 0 and high <= 115


def test_calibration_error_weighs_bins_by_their_frames() -> None:
    calibration = Calibration(
        label="a", edges=(0.0, 0.3, 0.6, 1.0), num_frames=(30, 10, 0), mean_prob=(0.1, 0.5, float("nan")),
        share_object=(0.2, 0.1, float("nan")),
    )  # fmt: skip
    assert figures.calibration_error(calibration) == pytest.approx((30 * 0.1 + 10 * 0.4) / 40)


def test_settings_of_matplotlib_are_left_alone() -> None:
    names = ("svg.fonttype", "svg.hashsalt", "font.size", "text.parse_math", "axes.grid")
    before = [mpl.rcParams[name] for name in names]
    figures.draw_beta([Line(label="a", x=(0.0,), estimates=(KNOWN,))], "canonical")
    assert [mpl.rcParams[name] for name in names] == before != [STYLE.get(name) for name in names]


def test_colours_differ_for_colour_blind_readers() -> None:
    """Machado et al. 2009, severity 1: no red, no green, no blue cones."""
    matrices = np.array([
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ])  # fmt: skip
    colours = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS[:4]])
    for matrix in (np.eye(3), *matrices):
        seen = (np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ matrix.T).clip(0, 1)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[np.triu_indices(4, 1)].min() > 0.08


def test_figure_for_a_page_has_unique_ids_and_page_colours() -> None:
    svg = ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt">'
           '<metadata>x</metadata><defs><style>*{}</style><clipPath id="c"/></defs>'
           '<g id="unused" style="fill: #1b1f24"><use xlink:href="#c" clip-path="url(#c)"/></g></svg>')  # fmt: skip
    found = themed(svg, {"#1b1f24": "ink"}, prefix="fig", label='say "<b>"')
    assert 'id="fig-c"' in found and 'xlink:href="#fig-c"' in found and "url(#fig-c)" in found
    assert "unused" not in found and "style>" not in found and "metadata" not in found and "width" not in found
    assert "fill: var(--ink, #1b1f24)" in found and 'aria-label="say &quot;&lt;b&gt;&quot;"' in found


def test_printable_text_is_one_line_without_control_characters() -> None:
    assert printable("a\n\tb\x00c\u202ed\ud800") == "a b\ufffdc\ufffdd\ufffd"
