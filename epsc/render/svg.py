"""A Timeline and a Graph as SVG pictures, for papers: text stays text, and nothing in them comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import floor, log10

from epsc.ir.graph import Graph
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import duration
from epsc.render.gantt import headline
from epsc.render.layered import layered
from epsc.render.looks import BY_KEY, Look, look_of, look_of_node

_FONT = "font-family='Helvetica, Arial, sans-serif'"
_LETTER = 0.56
"""Width of a letter over its size, on average and a little more: text must not stick out of its box."""
_BAD = "#c4161c"
_LANE, _GAP, _GUTTER, _HEAD = 30, 6, 110, 40


def timeline_svg(timeline: Timeline, width: int = 900) -> str:
    """Lanes as rows, time to the right, exposed transfers in red below; a legend."""
    return timelines_svg((timeline,), width)


def timelines_svg(timelines: Sequence[Timeline], width: int = 900) -> str:
    """Timelines above each other on one axis, the first on top."""
    total = max(timeline.total for timeline in timelines)
    scale = (width - _GUTTER - 10) / total if total else 0.0
    tops, bottom = list[int](), 0
    for timeline in timelines:
        tops.append(bottom)
        bottom += _HEAD + (len(timeline.lanes) + 1) * (_LANE + _GAP)
    body: list[str] = []
    for i, (timeline, top) in enumerate(zip(timelines, tops, strict=True)):
        body.append(_text(headline(timeline), 10, top + 18, 13, weight="bold"))
        if i == 0:
            body += _axis(total, scale, bottom)
        body += _lanes(timeline, scale, top + _HEAD)
    legend, height = _legend(timelines, bottom + 34, width)
    return _picture(width, height, [*body, *legend], " and ".join(map(headline, timelines)))


def _lanes(timeline: Timeline, scale: float, top: float) -> Iterator[str]:
    for row, lane in enumerate(timeline.lanes):
        y = top + row * (_LANE + _GAP)
        yield _text(_fitted(lane, _GUTTER - 20, 12), 10, y + 19, 12)
        for event in timeline.events:
            if event.lane == lane and event.seconds:
                yield from _bar(event, scale, y)
    y = top + len(timeline.lanes) * (_LANE + _GAP)
    if timeline.transfers:
        yield _text("exposed", 10, y + 15, 12, fill=_BAD)
        yield from _exposed(timeline, scale, y)


def _exposed(timeline: Timeline, scale: float, y: float) -> Iterator[str]:
    """Red bars, and how long each is: in it, else behind it or before it, where there is room."""
    taken, starts = float(_GUTTER), [_GUTTER + start * scale for start, _ in timeline.exposed]
    for (start, end), x, following in zip(
        timeline.exposed, starts, [*starts[1:], _GUTTER + timeline.total * scale], strict=True
    ):
        wide = max(0.5, (end - start) * scale)
        yield f"<rect x='{x:.2f}' y='{y}' width='{wide:.2f}' height='20' fill='{_BAD}'/>"
        words, right = duration(end - start), x + wide
        needed = len(words) * 10 * _LETTER + 4
        if needed <= wide:
            yield _text(words, x + 3, y + 14, 10, fill="#fff")
        elif needed <= following - right:
            yield _text(words, right + 3, y + 14, 10, fill=_BAD)
            right += needed
        elif needed <= x - taken:
            yield _text(words, x - needed + 1, y + 14, 10, fill=_BAD)
        taken = right


def graph_svg(graph: Graph) -> str:
    """Ops as boxes in rows below what they read, coloured by what they occupy."""
    drawn = layered(graph)
    rows: dict[int, list[tuple[int, str]]] = {}
    for name, place in drawn.places.items():
        rows.setdefault(place.row, []).append((place.column, name))
    words = {name: _words(graph, name) for name, place in drawn.places.items() if not place.passing}
    wide = {name: _box_width(words[name]) if name in words else _PASSING for name in drawn.places}
    across = {i: sum(wide[name] + _BESIDE for _, name in row) - _BESIDE for i, row in rows.items()}
    width = max(across.values(), default=0) + 20
    at: dict[str, tuple[float, float]] = {}
    for i, row in rows.items():
        x = (width - across[i]) / 2
        for _, name in sorted(row):
            at[name] = (x + wide[name] / 2, 10.0 + i * (_BOX + _BETWEEN))
            x += wide[name] + _BESIDE
    lines = [_route([at[name] for name in (line.source, *line.via, line.target)]) for line in drawn.lines]
    boxes = [text for name in words for text in _box(graph, name, words[name], at[name], wide[name])]
    return _picture(width, 20 + len(rows) * (_BOX + _BETWEEN) - _BETWEEN, [*lines, *boxes], graph.name)


_BOX, _BETWEEN, _BESIDE, _PASSING, _SMALL = 34, 28, 14, 6.0, 11


def _words(graph: Graph, name: str) -> tuple[str, str]:
    node = graph.node.get(name)
    value = name.removeprefix("in:")
    return (name, node.kind) if node else (value, str(graph.types[value]))


def _box_width(words: tuple[str, str]) -> float:
    return max(50.0, 16 + _SMALL * _LETTER * 1.1 * max(map(len, words)))


def _box(graph: Graph, name: str, words: tuple[str, str], at: tuple[float, float], wide: float) -> Iterator[str]:
    node = graph.node.get(name)
    fill = look_of_node(node).light if node else "#eceef2"
    x, y = at[0] - wide / 2, at[1]
    place = f"x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{_BOX}'"
    yield f"<rect {place} rx='4' fill='{fill}' stroke='#888'/>"
    yield _text(words[0], x + 8, y + 14, _SMALL, weight="bold")
    yield _text(words[1], x + 8, y + 28, _SMALL)


def _route(stops: list[tuple[float, float]]) -> str:
    """A line from the foot of one box to the head of another, straight where it passes a row."""
    path = f"M{stops[0][0]:.1f} {stops[0][1] + _BOX:.1f}"
    for (x0, y0), (x1, y1) in pairwise(stops):
        bend = (y1 - y0 - _BOX) / 2
        path += f"C{x0:.1f} {y0 + _BOX + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        if (x1, y1) != stops[-1]:
            path += f"L{x1:.1f} {y1 + _BOX:.1f}"
    return f"<path d='{path}' fill='none' stroke='#666'/>"


def _bar(event: Event, scale: float, y: float) -> Iterator[str]:
    x, wide = _GUTTER + event.start * scale, max(0.4, event.seconds * scale - 0.5)
    fill = look_of(event.role, event.direction).light
    yield (
        f"<rect x='{x:.2f}' y='{y}' width='{wide:.2f}' height='{_LANE}' fill='{fill}'>"
        f"<title>{escape(event.step)}: {duration(event.seconds)}</title></rect>"
    )
    number = "" if event.chunk is None else str(event.chunk)
    for name in (f"{number} {event.node}", f"{number} {event.node.partition('.')[0]}", number):
        if name.strip() and _fits(name.strip(), wide - 4, 11):
            yield _text(name.strip(), x + 3, y + 19, 11)
            return


def _axis(total: float, scale: float, bottom: float) -> Iterator[str]:
    """Ticks at round times, about 90 apart."""
    if not total:
        return
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if total >= u), (1e-9, "ns"))
    least = 90 / scale / unit
    power = 10.0 ** floor(log10(least))
    step = next(s * power for s in (1, 2, 5, 10, 20) if s * power >= least)
    k = 0
    while k * step * unit <= total:
        x = _GUTTER + k * step * unit * scale
        yield f"<line x1='{x:.2f}' x2='{x:.2f}' y1='{_HEAD - 4}' y2='{bottom}' stroke='#ddd'/>"
        words = f"{k * step:g} {name}"
        if x + len(words) * 10 * _LETTER <= _GUTTER + total * scale + 10:  # what would stick out is left out
            yield _text(words, x, bottom + 12, 10, fill="#555")
        k += 1


def _legend(timelines: Sequence[Timeline], top: float, width: int) -> tuple[list[str], float]:
    """Samples in lines that fit, and where the last one ends."""
    used: dict[str, Look] = {}
    for event in (event for timeline in timelines for event in timeline.events):
        look = look_of(event.role, event.direction)
        used[look.key] = look
    samples = [(look.light, look.words) for key, look in BY_KEY.items() if key in used]
    samples += [(_BAD, "a transfer that nothing hides")] if any(timeline.exposed for timeline in timelines) else []
    made: list[str] = []
    x, y = 10.0, top
    for fill, words in samples:
        size = 40 + len(words) * 11 * _LETTER * 1.1
        if x > 10 and x + size > width:
            x, y = 10.0, y + 18
        made.append(f"<rect x='{x:.1f}' y='{y - 9}' width='18' height='11' fill='{fill}'/>")
        made.append(_text(words, x + 23, y, 11))
        x += size
    return made, y + 12


def _text(words: str, x: float, y: float, size: int, fill: str = "#111", weight: str = "normal") -> str:
    bold = f" font-weight='{weight}'" if weight != "normal" else ""
    return f"<text x='{x:.2f}' y='{y:.2f}' font-size='{size}' fill='{fill}'{bold}>{escape(words)}</text>"


def _fits(words: str, room: float, size: int) -> bool:
    return len(words) * size * _LETTER <= room


def _fitted(words: str, room: float, size: int) -> str:
    return words if _fits(words, room, size) else words[: int(room / size / _LETTER) - 1] + "…"


def _picture(width: float, height: float, body: list[str], title: str) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}'"
        f" viewBox='0 0 {width:.0f} {height:.0f}' {_FONT} role='img'>"
    )
    ground = "<rect width='100%' height='100%' fill='#fff'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *body, "</svg>"])
