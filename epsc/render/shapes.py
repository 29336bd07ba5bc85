"""What SVG pictures are made of: text that stays text, in the colours of a page or of paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from epsc.render.looks import Look

_FONT = "font-family='Helvetica, Arial, sans-serif'"
LETTER = 0.56
"""Width of a letter over its size, on average and a little more: text must not stick out of its box."""


@dataclass(frozen=True)
class Ink:
    """The colours of a picture."""

    dark: bool
    ground: str
    text: str
    soft: str
    grid: str
    bad: str
    """Of transfers that nothing hides."""
    on_bad: str

    def fill(self, look: Look) -> str:
        return look.dark if self.dark else look.light


PAPER = Ink(False, "#fff", "#111", "#555", "#ddd", "#c4161c", "#fff")
DARK = Ink(True, "#14161a", "#e8eaee", "#a8afbb", "#2a2e36", "#ff5f57", "#14161a")
ON_FILL = "#111"
"""Text on a bar or a box, whatever the ground."""


def text(words: str, x: float, y: float, size: int, fill: str, weight: str = "normal") -> str:
    return parts([(words, fill, weight)], x, y, size)


def parts(words: Sequence[tuple[str, str, str]], x: float, y: float, size: int) -> str:
    """One line of several colours and weights."""
    if len(words) == 1:
        return f"<text x='{x:.2f}' y='{y:.2f}' font-size='{size}'{_ink(*words[0][1:])}>{escape(words[0][0])}</text>"
    spans = "".join(f"<tspan{_ink(fill, weight)}>{escape(each)}</tspan>" for each, fill, weight in words)
    return f"<text x='{x:.2f}' y='{y:.2f}' font-size='{size}' xml:space='preserve'>{spans}</text>"


def _ink(fill: str, weight: str) -> str:
    return f" fill='{fill}'" + (f" font-weight='{weight}'" if weight != "normal" else "")


def fits(words: str, room: float, size: int) -> bool:
    return len(words) * size * LETTER <= room


def fitted(words: str, room: float, size: int) -> str:
    return words if fits(words, room, size) else words[: max(0, int(room / size / LETTER) - 1)] + "…"


def picture(width: float, height: float, body: Sequence[str], title: str, ink: Ink = PAPER) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}'"
        f" viewBox='0 0 {width:.0f} {height:.0f}' {_FONT} role='img'>"
    )
    ground = f"<rect width='100%' height='100%' fill='{ink.ground}'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *body, "</svg>"])
