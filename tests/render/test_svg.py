"""SVG pictures: well-formed, true to their timeline, and no line of a graph behind a box."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest

from epsc.ir.kinds import Role
from epsc.machine.reasons import exposures
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import duration
from epsc.render.gantt import headline
from epsc.render.layered import layered
from epsc.render.svg import reason, timeline_svg, timelines_svg
from epsc.render.svg_graph import graph_svg
from tests.machine.schedules import eps
from tests.render.pages import HOSTILE, side

WHY = "longest exposed: 12 us of sent.all2all: a reason that is " + "long, " * 60
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
    assert tags <= {"svg", "title", "rect", "line", "text", "tspan"} and "<img" not in text
    graph = eps(1).graph
    named = replace(graph, nodes=(replace(graph.nodes[0], kind=graph.nodes[0].kind, name=HOSTILE), *graph.nodes[1:]))
    assert "<img" not in graph_svg(named)


def test_text_stays_in_the_picture() -> None:
    for width in (300, 600, 1200):
        picture = ElementTree.fromstring(timeline_svg(side().predicted[-1], width, WHY))
        for text in picture.iter(f"{SVG}text"):
            end = float(text.get("x", "")) + len("".join(text.itertext())) * float(text.get("font-size", "")) * 0.56
            assert end <= width, "".join(text.itertext())
        assert float(re.sub("[^0-9.]", "", picture.get("height", ""))) > 100


def test_the_head_says_what_is_exposed_and_why() -> None:
    """Of all that is said, what is exposed stands out; each transfer has red under just that part of its bar."""
    given = side()
    assert given.schedule
    timeline = given.predicted[-1]
    why = reason(timeline, given.schedule)
    longest = max(exposures(timeline, given.schedule), key=lambda each: each.seconds)
    assert longest.step in why and longest.words in why and duration(longest.seconds) in why
    for dark, red in ((False, "#c4161c"), (True, "#ff5f57")):
        picture = ElementTree.fromstring(timelines_svg([timeline], 1000, [why], dark))
        said = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
        assert "; ".join(said[:2]) == headline(timeline) and said[2] == why
        (loud,) = [span.text for span in picture.iter(f"{SVG}tspan") if span.get("font-weight") == "bold"]
        assert loud == f"{duration(timeline.exposed_transfer)} exposed"
        strips = [r for r in picture.iter(f"{SVG}rect") if r.get("fill") == red and r.get("height") == "5"]
        scale = (1000 - 110 - 10) / timeline.total
        assert sum(float(r.get("width", "")) for r in strips) >= timeline.exposed_transfer * scale - 0.1


def test_an_empty_timeline_is_a_picture() -> None:
    ElementTree.fromstring(timeline_svg(Timeline("nothing", 0, (), ())))
