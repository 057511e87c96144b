"""What a tab shows as HTML, from templates that escape every text."""

import base64
import io
import wave
from functools import cache
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.report.clip_steps import WAVE_HZ
from experiments.report.page import environment, resource

TEMPLATE, STYLES = "view.html.jinja", ("card.css", "view.css")


def style() -> str:
    """The style sheet of the page."""
    return "".join(resource(name, "view") for name in STYLES)


def render(macro: str, *arguments: Any) -> str:
    """What a macro of the template makes of its arguments."""
    return str(getattr(_template(), macro)(*arguments))


@cache
def _template() -> Any:
    rooms: jinja2.Environment = environment("view")
    rooms.filters |= {"png": png, "wav": wav}
    return rooms.get_template(TEMPLATE).module


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as a data URI, without loss."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def wav(samples: Float[np.ndarray, " s"]) -> str:
    """Mono sound at `WAVE_HZ` as a data URI."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(WAVE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(content.getvalue()).decode()}"
