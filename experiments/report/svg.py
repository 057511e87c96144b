"""SVG for pages: makes user text printable, and turns matplotlib's files into elements with the page's colours."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LINK = f"{{{XLINK}}}href"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def printable(text: str) -> str:
    """`text` on one line, without characters that XML forbids or that change the direction of text."""
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", text))


def themed(svg: str, theme: Mapping[str, str], prefix: str, label: str) -> str:
    """Converts a file to an `<svg>` element for a page.

    Unused ids, metadata and style sheets, which would apply to the whole page, are left out.

    Args:
        svg: the whole file.
        theme: name of the page's variable for each colour as written in the file, e.g. `#1b1f24`.
        prefix: prefix of the remaining ids, different for each figure of the page.
        label: text alternative.
    """
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(svg)
    _drop(root, {f"{{{SVG}}}metadata", f"{{{SVG}}}style"})
    used = set(_REFERENCE.findall(svg))
    used |= {element.get(_LINK, "").removeprefix("#") for element in root.iter()}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.attrib.pop("id")
                if value in used:
                    element.set("id", f"{prefix}-{value}")
            elif name == _LINK:
                element.set(name, f"#{prefix}-{value.removeprefix('#')}")
            elif name in ("style", "fill", "stroke", "clip-path"):
                element.set(name, _themed(_REFERENCE.sub(rf"url(#{prefix}-\1)", value), theme))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _drop(element: ET.Element, tags: set[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _themed(value: str, theme: Mapping[str, str]) -> str:
    for colour, name in theme.items():
        value = value.replace(colour, f"var(--{name}, {colour})")
    return value
