"""Timelines as SVG pictures, for papers and pages: text stays text, and nothing in them comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule
from epsc.machine.reasons import exposures
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import duration
from epsc.render.gantt import head_words, headline
from epsc.render.looks import BY_KEY, Look, look_of
from epsc.render.shapes import DARK, LETTER, ON_FILL, PAPER, Ink, fits, fitted, parts, picture, text

_LANE, _GAP, _GUTTER, _LINE = 30, 6, 110, 17
_STRIP = 5
"""Height of the red under a transfer that nothing hides."""


def timeline_svg(timeline: Timeline, width: int = 900, why: str = "") -> str:
    """Lanes as rows, time to the right, exposed transfers in red below; a legend. `why`: a line below the headline."""
    return timelines_svg((timeline,), width, (why,))


def timelines_svg(timelines: Sequence[Timeline], width: int = 900, why: Sequence[str] = (), dark: bool = False) -> str:
    """Timelines above each other on one axis, the first on top, each with a line that says why, if there is one."""
    total = max(timeline.total for timeline in timelines)
    drawing = _Drawing(width, (width - _GUTTER - 10) / total if total else 0.0, DARK if dark else PAPER)
    body: list[str] = []
    bottom = 0.0
    for timeline, reason in zip(timelines, [*why, *[""] * (len(timelines) - len(why))], strict=True):
        head = [*drawing.head(timeline, reason, bottom)]
        top = bottom + len(head) * _LINE + 14
        bottom = top + (len(timeline.lanes) + bool(timeline.transfers)) * (_LANE + _GAP)
        body += [*head, *drawing.grid(total, top - 4, bottom), *drawing.lanes(timeline, top)]
    body += drawing.axis(total, bottom)
    legend, height = drawing.legend(timelines, bottom + 34)
    return picture(width, height, [*body, *legend], " and ".join(map(headline, timelines)), drawing.ink)


def reason(timeline: Timeline, schedule: Schedule) -> str:
    """The longest transfer that nothing hides, and what kept compute from hiding it; nothing where all are hidden."""
    found = max(exposures(timeline, schedule), key=lambda each: each.seconds, default=None)
    return f"longest exposed: {duration(found.seconds)} of {found.step}: {found.words}" if found else ""


@dataclass(frozen=True)
class _Drawing:
    width: int
    scale: float
    """Of the picture, for a second."""
    ink: Ink

    def head(self, timeline: Timeline, why: str, top: float) -> Iterator[str]:
        """How long it takes; what of its transfers nothing hides; and why."""
        ink, room = self.ink, self.width - 20
        total, before, exposed, after = head_words(timeline)
        yield text(fitted(total, room / 1.1, 14), 10, top + _LINE + 2, 14, ink.text, "bold")
        if not before:
            return
        fill, weight = (ink.bad, "bold") if timeline.exposed else (ink.soft, "normal")
        said = [(before, ink.soft, "normal"), (exposed, fill, weight), (after, ink.soft, "normal")]
        while len(said) > 1 and not fits("".join(words for words, *_ in said), room, 12):
            said.pop()
        yield parts(said, 10, top + 2 * _LINE + 2, 12)
        if why:
            yield text(fitted(why, room, 11), 10, top + 3 * _LINE, 11, ink.soft)

    def lanes(self, timeline: Timeline, top: float) -> Iterator[str]:
        for row, lane in enumerate(timeline.lanes):
            y = top + row * (_LANE + _GAP)
            yield text(fitted(lane, _GUTTER - 20, 12), 10, y + 19, 12, self.ink.text)
            for event in timeline.events:
                if event.lane == lane and event.seconds:
                    yield from self.bar(event, y)
                    if event.role is Role.TRANSFER:
                        yield from self.strip(event, timeline, y + _LANE - _STRIP)
        y = top + len(timeline.lanes) * (_LANE + _GAP)
        if timeline.transfers:
            yield text("exposed", 10, y + 15, 12, self.ink.bad)
            yield from self.exposed(timeline, y)

    def bar(self, event: Event, y: float) -> Iterator[str]:
        long, moves = event.waits * self.scale, event.seconds - event.waits
        x, wide = _GUTTER + event.start * self.scale + long, max(0.4, moves * self.scale - 0.5)
        fill = self.ink.fill(look_of(event.role, event.direction))
        if event.waits:  # thin: for ranks that are not there yet
            yield f"<rect x='{x - long:.2f}' y='{y + _LANE / 2 - 2:g}' width='{long:.2f}' height='4' fill='{fill}'/>"
        yield (
            f"<rect x='{x:.2f}' y='{y}' width='{wide:.2f}' height='{_LANE}' fill='{fill}'>"
            f"<title>{escape(event.step)}: {duration(event.seconds)}</title></rect>"
        )
        number = "" if event.chunk is None else str(event.chunk)
        for name in (f"{number} {event.node}", f"{number} {event.node.partition('.')[0]}", number):
            if name.strip() and fits(name.strip(), wide - 4, 11):
                yield text(name.strip(), x + 3, y + 18, 11, ON_FILL)
                return

    def strip(self, event: Event, timeline: Timeline, y: float) -> Iterator[str]:
        """Red under the part of a transfer that nothing hides."""
        for start, end in timeline.exposed:
            first, last = max(start, event.start), min(end, event.end)
            if first < last:
                x, wide = _GUTTER + first * self.scale, (last - first) * self.scale
                yield f"<rect x='{x:.2f}' y='{y}' width='{wide:.2f}' height='{_STRIP}' fill='{self.ink.bad}'/>"

    def exposed(self, timeline: Timeline, y: float) -> Iterator[str]:
        """Red bars, and how long each is: in it, else behind it or before it, where there is room."""
        scale, ink = self.scale, self.ink
        taken, starts = float(_GUTTER), [_GUTTER + start * scale for start, _ in timeline.exposed]
        for (start, end), x, following in zip(
            timeline.exposed, starts, [*starts[1:], _GUTTER + timeline.total * scale], strict=True
        ):
            wide = max(0.5, (end - start) * scale)
            yield f"<rect x='{x:.2f}' y='{y}' width='{wide:.2f}' height='20' fill='{ink.bad}'/>"
            words, right = duration(end - start), x + wide
            needed = len(words) * 10 * LETTER + 4
            if needed <= wide:
                yield text(words, x + 3, y + 14, 10, ink.on_bad)
            elif needed <= following - right:
                yield text(words, right + 3, y + 14, 10, ink.bad)
                right += needed
            elif needed <= x - taken:
                yield text(words, x - needed + 1, y + 14, 10, ink.bad)
            taken = right

    def grid(self, total: float, top: float, bottom: float) -> Iterator[str]:
        for x, _ in self.ticks(total):
            yield f"<line x1='{x:.2f}' x2='{x:.2f}' y1='{top}' y2='{bottom}' stroke='{self.ink.grid}'/>"

    def axis(self, total: float, bottom: float) -> Iterator[str]:
        for x, words in self.ticks(total):
            if x + len(words) * 10 * LETTER <= self.width:  # what would stick out is left out
                yield text(words, x, bottom + 12, 10, self.ink.soft)

    def ticks(self, total: float) -> Iterator[tuple[float, str]]:
        """Round times, about 90 apart."""
        if not total:
            return
        unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if total >= u), (1e-9, "ns"))
        least = 90 / self.scale / unit
        power = 10.0 ** floor(log10(least))
        step = next(s * power for s in (1, 2, 5, 10, 20) if s * power >= least)
        k = 0
        while k * step * unit <= total:
            yield _GUTTER + k * step * unit * self.scale, f"{k * step:g} {name}"
            k += 1

    def legend(self, timelines: Sequence[Timeline], top: float) -> tuple[list[str], float]:
        """Samples in lines that fit, and where the last one ends."""
        used: dict[str, Look] = {}
        for event in (event for timeline in timelines for event in timeline.events):
            look = look_of(event.role, event.direction)
            used[look.key] = look
        samples = [(self.ink.fill(look), look.words) for key, look in BY_KEY.items() if key in used]
        if any(timeline.exposed for timeline in timelines):
            samples.append((self.ink.bad, "a transfer that nothing hides"))
        made: list[str] = []
        x, y = 10.0, top
        for fill, words in samples:
            size = 40 + len(words) * 11 * LETTER
            if x > 10 and x + size > self.width:
                x, y = 10.0, y + 18
            made.append(f"<rect x='{x:.1f}' y='{y - 9}' width='18' height='11' fill='{fill}'/>")
            made.append(text(words, x + 23, y, 11, self.ink.text))
            x += size
        if any(event.waits for timeline in timelines for event in timeline.events):
            words = "thin: waits for busier ranks"
            if x > 10 and x + len(words) * 11 * LETTER > self.width:
                x, y = 10.0, y + 18
            made.append(text(words, x, y, 11, self.ink.text))
        return made, y + 12
