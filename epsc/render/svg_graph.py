"""A Graph as an SVG picture, for papers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from epsc.ir.graph import Graph
from epsc.render.layered import layered
from epsc.render.looks import look_of_node
from epsc.render.shapes import LETTER, ON_FILL, picture, text


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
    return picture(width, 20 + len(rows) * (_BOX + _BETWEEN) - _BETWEEN, [*lines, *boxes], graph.name)


_BOX, _BETWEEN, _BESIDE, _PASSING, _SMALL = 34, 28, 14, 6.0, 11


def _words(graph: Graph, name: str) -> tuple[str, str]:
    node = graph.node.get(name)
    value = name.removeprefix("in:")
    return (name, node.kind) if node else (value, str(graph.types[value]))


def _box_width(words: tuple[str, str]) -> float:
    return max(50.0, 16 + _SMALL * LETTER * 1.1 * max(map(len, words)))


def _box(graph: Graph, name: str, words: tuple[str, str], at: tuple[float, float], wide: float) -> Iterator[str]:
    node = graph.node.get(name)
    fill = look_of_node(node).light if node else "#eceef2"
    x, y = at[0] - wide / 2, at[1]
    place = f"x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{_BOX}'"
    yield f"<rect {place} rx='4' fill='{fill}' stroke='#888'/>"
    yield text(words[0], x + 8, y + 14, _SMALL, ON_FILL, "bold")
    yield text(words[1], x + 8, y + 28, _SMALL, ON_FILL)


def _route(stops: list[tuple[float, float]]) -> str:
    """A line from the foot of one box to the head of another, straight where it passes a row."""
    path = f"M{stops[0][0]:.1f} {stops[0][1] + _BOX:.1f}"
    for (x0, y0), (x1, y1) in pairwise(stops):
        bend = (y1 - y0 - _BOX) / 2
        path += f"C{x0:.1f} {y0 + _BOX + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        if (x1, y1) != stops[-1]:
            path += f"L{x1:.1f} {y1 + _BOX:.1f}"
    return f"<path d='{path}' fill='none' stroke='#666'/>"
