"""The page of a report: its content, escaping of untrusted text, and its rendering in a real browser."""

import dataclasses
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.report import page
from experiments.report.clip_steps import DrawnStep
from experiments.report.figures import draw_beta
from experiments.report.gallery import Card, Gallery, Group
from experiments.report.tables import Cell, Column, Estimate, Line, Report, Table, TableRow
from tests.experiments.browser import Browser, browser, find_browser

HOSTILE = (
    "<script>alert(1)</script>", "</style><script>alert(2)</script>", "\"'><img src=x onerror=alert(3)>",
    "javascript:alert(4)", "</svg></title></textarea><iframe src=//evil>", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;",
    "\x00\u202e\ud800 名前", "-->]]>",
)  # fmt: skip
TAGS = {
    "a", "article", "aside", "bdi", "body", "clippath", "code", "dd", "defs", "div", "dl", "dt", "figcaption", "figure",
    "g", "h1", "h2", "h3", "h4", "head", "header", "html", "image", "li", "link", "main", "meta", "nav", "ol", "p",
    "path", "q", "rect", "section", "small", "span", "strong", "style", "svg", "table", "tbody", "td", "text", "th",
    "thead", "title", "tr", "ul", "use",
}  # fmt: skip
COLUMNS = (
    Column(group="Seen", name="J", unit="%"), Column(group="Seen", name="F", unit="%"),
    Column(group="Null", name="S", lower_is_better=True), Column(group="", name="minutes", lower_is_better=None),
)  # fmt: skip


def cells(*values: float | None) -> tuple[Cell, ...]:
    return tuple(
        Cell(value=None, note="no expressions") if value is None
        else Cell(value=value, low=value - 1, high=value + 2, text=f"{value:.1f} ± 1.5")
        for value in values
    )  # fmt: skip


def report_of(names: tuple[str, ...] = ("full", "no_text"), random_features: bool = True) -> Report:
    """A report in which every text that comes from elsewhere is one of `names`."""
    rows = [TableRow(label=name, cells=cells(40.0 + i, 50.0, 0.3 + i, 5.0), protocol="canonical", num_seeds=3,
                     mark=name) for i, name in enumerate(names)]  # fmt: skip
    rows += [
        TableRow(label=names[0], kind="control", cells=cells(99.0, None, 0.0, 0.0), protocol="canonical"),
        TableRow(label=names[0], kind="published", cells=cells(99.0, 1.0, 0.0, 0.0), protocol="as printed"),
    ]
    tables = tuple(
        Table(name=f"table {names[0]} {number}", title=f"Title {names[-1]}", protocol=protocol, row_heading=names[0],
              columns=COLUMNS, rows=tuple(rows), notes=names)
        for number, protocol in enumerate(("canonical", "canonical", "released", names[0]))
    )  # fmt: skip
    return Report(
        title=f"Sweep {names[0]}", facts=tuple((name, name * 9) for name in names), warnings=names,
        random_features=random_features, protocols=("canonical", "released"), reference=names[0], tables=tables,
        beta=(Line(label=names[0], x=(0.0, 1.0), estimates=(Estimate(value=1.0), Estimate(value=2.0))),),
    )  # fmt: skip


def gallery_of(text: str, num_steps: int = 10) -> Gallery:
    step = DrawnStep(time_s=0, picture="data:image/gif;base64,R0lGODlhAQABAAAAACw=", truth="M0 0L9 9Z",
                     pred="M0 0L5 9Z", wave="M0 0L9 9Z", verdict="J 71")  # fmt: skip
    card = Card(sentence=text, uid=text, split=text, dimension=text, score="J 71.0 %", width=160, note=text,
                steps=(step,) * num_steps)  # fmt: skip
    return Gallery(label=text, groups=(Group(name="best", title="Best expressions", text=text, cards=(card,)),))


class Elements(HTMLParser):
    """Every element with its attributes, and the page's text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_opens_with_what_was_compared_warnings_and_the_first_table() -> None:
    html = page.render(report_of(), gallery=Gallery(reason="the store is gone"))
    places = [html.index(text) for text in (
        "<h1>Sweep full", 'class="warning"', "<dl class=\"facts\">", 'id="results"', "Title no_text", 'id="figures"',
        'id="tables"', 'id="gallery"', "<h2>Protocol released", "<h2>How to read",
    )]  # fmt: skip
    assert places == sorted(places)
    assert '<html lang="en">' in html and "There is no gallery: the store is gone." in html
    elements = Elements(html)
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids)), "ids are unique, those of figures too"
    links = {attrs["href"].removeprefix("#") for tag, attrs in elements.found if tag == "a"}
    assert links and links <= set(ids), "every entry of the contents leads somewhere"


def test_tables_and_figures_name_their_protocol_and_random_features() -> None:
    for random_features in (True, False):
        html = page.render(report_of(random_features=random_features), gallery=Gallery())
        captions = re.findall(r"<figcaption>.*?</figcaption>", html, re.DOTALL)
        assert len(captions) == 5 and all("Protocol:" in caption for caption in captions)
        assert all(("random features" in caption) == random_features for caption in captions)
    assert html.count("<small>published, protocol: as printed</small>") == 4
    assert html.count("<small>control</small>") == html.count("<small>control, protocol: canonical</small>") == 2


def test_best_number_of_a_column_is_among_our_runs() -> None:
    table = report_of().tables[0]
    assert page.best(table) == {(1, 0), (0, 2)}, "S is better where it is lower, minutes neither, and F is equal"
    alone = Table(name="", title="", protocol="", row_heading="", columns=COLUMNS, rows=table.rows[1:])
    assert page.best(alone) == set()


def test_difference_that_is_not_shown_is_quiet_and_never_best() -> None:
    row = report_of().tables[0].rows[0]
    texts = ("+9.0 [-1.0, +19.0], not shown", "+2.0 [+1.0, +3.0], higher", "+1.0 [+0.5, +1.5], higher")
    table = Table(name="d", title="d", protocol="canonical", row_heading="row", columns=COLUMNS[:1], rows=tuple(
        dataclasses.replace(row, cells=(Cell(value=float(text[1:4]), text=text),)) for text in texts))  # fmt: skip
    assert page.best(table) == {(1, 0)}
    html = page.render(dataclasses.replace(report_of(), tables=(table,)), drawings=[], gallery=Gallery())
    assert html.count('class="quiet"') == 1 and html.count('class="best"') == 1


def test_neighbouring_columns_share_their_heading() -> None:
    assert page.spans(COLUMNS) == [("Seen", 2), ("Null", 1), ("", 1)]
    assert page.spans(COLUMNS[3:]) == []


def test_number_is_set_apart_from_its_interval() -> None:
    assert page.parts("24.6 ± 5.0") == ("24.6", "± 5.0") and page.parts("-") == ("-", "")
    assert page.parts("+1.3 [-4.0, +6.7], not shown") == ("+1.3", "[-4.0, +6.7], not shown")
    assert page.parts("[19.6, 29.7]") == ("[19.6, 29.7]", "") and page.parts("") == ("", "")


def test_tooltip_has_interval_and_note() -> None:
    assert page.tip(Cell(value=1.0, low=0.5, high=2.0)) == "95 % interval 0.5 to 2"
    assert page.tip(Cell(value=None, note="one seed: no interval")) == "one seed: no interval"


def test_foreign_text_is_shown_as_it_is_and_adds_no_element() -> None:
    html = page.render(report_of(HOSTILE), gallery=gallery_of("".join(HOSTILE)))
    html.encode()  # no lone surrogate, which a file could not hold
    elements = Elements(html)
    assert {tag for tag, _ in elements.found} <= TAGS
    for tag, attrs in elements.found:
        assert not [name for name in attrs if name.startswith("on") or name in ("srcdoc", "formaction", "action")]
        for name in ("href", "src", "xlink:href"):
            if name in attrs:
                assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    for text in HOSTILE[:-2]:
        assert text in elements.text


def test_empty_report_still_renders() -> None:
    html = page.render(Report(title="t", facts=(), warnings=(), random_features=False, protocols=(), reference="",
                              tables=()))  # fmt: skip
    assert "There is no table" in html and "There is no gallery: no run of this report keeps" in html


def test_policy_lets_nothing_be_loaded_and_no_script_run() -> None:
    html = page.render(report_of(), gallery=gallery_of("a"))
    assert "<script" not in html and "@import" not in html and "url(http" not in html
    assert html.index("Content-Security-Policy") < html.index("<title>")
    assert "default-src &#39;none&#39;; img-src data:; style-src &#39;unsafe-inline&#39;" in html


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed; apt-get install chromium")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


def complaints(found: Browser) -> list[str]:
    """What a browser has against the page that is open: messages, errors, requests and a page that scrolls sideways."""
    wrong = [entry["entry"]["text"] for entry in found.heard("Log.entryAdded")]
    wrong += [f"console: {call['args']}" for call in found.heard("Runtime.consoleAPICalled")]
    wrong += [f"exception: {thrown['exceptionDetails']}" for thrown in found.heard("Runtime.exceptionThrown")]
    urls = [request["request"]["url"] for request in found.heard("Network.requestWillBeSent")]
    wrong += [f"request: {url[:80]}" for url in urls[1:] if not url.startswith("data:")]
    wide = found.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*wrong, *([f"{wide} px too wide"] if wide else [])]


@pytest.mark.process
@pytest.mark.parametrize("width", [1400, 400])
def test_browser_has_nothing_against_the_page(chromium: Browser, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.render(report_of(HOSTILE), gallery=gallery_of("".join(HOSTILE))), "utf-8")
    for scheme in ("light", "dark"):
        chromium.open(path, width, scheme=scheme)
        assert complaints(chromium) == []
    assert chromium.value("document.querySelectorAll('script, iframe, img, [onerror]').length") == 0
    assert chromium.value("document.querySelectorAll('table').length") == 4
    assert chromium.value("document.querySelectorAll('.drawing > svg text').length") > 5
    if width == 400:
        assert chromium.value("document.querySelector('.scroll').scrollWidth") > 400, "tables scroll in their own box"
    smallest = "Math.min(...[...document.querySelectorAll('.drawing text')].map(e => e.getBoundingClientRect().height))"
    assert chromium.value(smallest) >= 8


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<div style="width: 500px">a</div>', "px too wide"),
        ('<img src="gone.png">', "request: file:"),
        ("<script>nothing()</script>", "exception: "),
    ],
)
def test_browser_would_complain(chromium: Browser, tmp_path: Path, body: str, complaint: str) -> None:
    path = tmp_path / "bad.html"
    path.write_text(f"<!DOCTYPE html><title>t</title><body>{body}", "utf-8")
    chromium.open(path, 400)
    assert any(complaint in found for found in complaints(chromium)), complaints(chromium)


@pytest.mark.long
def test_drawings_may_be_given() -> None:
    drawing = draw_beta([Line(label="Seen", x=(0.0,), estimates=(Estimate(value=1.0),))], "davis")
    assert drawing is not None
    html = page.render(report_of(), drawings=[drawing], gallery=Gallery())
    assert html.count('class="drawing"') == 1 and "Protocol: davis" in html
