"""SVG pictures: well-formed, true to their timeline, and no line of a graph behind a box."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest

from epsc.ir.kinds import Role
from epsc.machine.timeline import Event, Timeline
from epsc.render.layered import layered
from epsc.render.svg import graph_svg, timeline_svg
from tests.machine.schedules import eps
from tests.render.pages import HOSTILE, side

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_lie_where_the_timeline_says() -> None:
    timeline = side().predicted[-1]
    picture = ElementTree.fromstring(timeline_svg(timeline, width=1000))
    bars = [rect for rect in picture.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    events = [event for lane in timeline.lanes for event in timeline.events if event.lane == lane and event.seconds]
    assert len(bars) == len(events)
    scale = (1000 - 110 - 10) / timeline.total
    for bar, event in zip(bars, events, strict=True):
        title = bar.find(f"{SVG}title")
        assert title is not None and (title.text or "").startswith(event.step)
        assert float(bar.get("x", "")) == pytest.approx(110 + event.start * scale, abs=0.01)
    red = [rect for rect in picture.iter(f"{SVG}rect") if rect.get("fill") == "#c4161c" and rect.get("height") == "20"]
    assert len(red) == len(timeline.exposed)


def test_graphs_show_every_op_once() -> None:
    graph = eps(1).graph
    picture = ElementTree.fromstring(graph_svg(graph))
    bold = [text.text for text in picture.iter(f"{SVG}text") if text.get("font-weight") == "bold"]
    assert sorted(filter(None, bold)) == sorted([*graph.node, *graph.inputs])
    reads = sum(len(dict.fromkeys(node.ins)) for node in graph.nodes)
    assert len(list(picture.iter(f"{SVG}path"))) == reads


def test_lines_go_row_by_row_through_places_of_their_own() -> None:
    drawn = layered(eps(1).graph)
    assert any(line.via for line in drawn.lines)
    for line in drawn.lines:
        path = [drawn.places[name] for name in (line.source, *line.via, line.target)]
        assert all(then.row == first.row + 1 for first, then in pairwise(path))
        assert all(place.passing for place in path[1:-1])
    seen = [(place.row, place.column) for place in drawn.places.values()]
    assert len(set(seen)) == len(seen), "nobody sits on another"


def test_names_are_escaped() -> None:
    event = Event(HOSTILE, HOSTILE, HOSTILE, Role.COMPUTE, 0, 1)
    text = timeline_svg(Timeline(HOSTILE, 1, (HOSTILE,), (event,)))
    tags = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "title", "rect", "line", "text"} and "<img" not in text
    graph = eps(1).graph
    named = replace(graph, nodes=(replace(graph.nodes[0], kind=graph.nodes[0].kind, name=HOSTILE), *graph.nodes[1:]))
    assert "<img" not in graph_svg(named)


def test_text_stays_in_the_picture() -> None:
    for width in (300, 600, 1200):
        picture = ElementTree.fromstring(timeline_svg(side().predicted[-1], width=width))
        for text in list(picture.iter(f"{SVG}text"))[1:]:
            assert float(text.get("x", "")) < width
        assert float(re.sub("[^0-9.]", "", picture.get("height", ""))) > 100


def test_an_empty_timeline_is_a_picture() -> None:
    ElementTree.fromstring(timeline_svg(Timeline("nothing", 0, (), ())))
