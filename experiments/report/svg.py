"""SVG for pages: foreign text made printable, and matplotlib's files made elements whose colours the page sets."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LINK = f"{{{XLINK}}}href"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def printable(text: str) -> str:
    """`text` in one line, without what XML refuses or what turns the order of letters around."""
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", text))


def themed(svg: str, theme: Mapping[str, str], prefix: str, label: str) -> str:
    """An `<svg>` element for a page.

    Ids that nothing refers to, metadata and style sheets, which would hold for the whole page, are left out.

    Args:
        svg: a whole file.
        theme: by a colour as the file writes it, e.g. `#1b1f24`, the name of the page's variable that replaces it.
        prefix: makes the remaining ids unlike those of the page's other figures.
        label: the picture in words.
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
