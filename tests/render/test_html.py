"""The page holds the plan, says where things come from, and takes no text for HTML."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from epsc.render.html import loads_between, page, step_lines
from epsc.render.html.page import pack, page_data, unpack
from epsc.render.plan import plan_json
from tests.render.pages import HOSTILE, LOADS, large, side, trace, with_trace

LIMIT = 1_500_000


def data_of(text: str) -> dict:  # type: ignore[type-arg]
    found = re.search(r'<script id="data"[^>]*>([A-Za-z0-9+/=]*)</script>', text)
    assert found, "the data is packed: no other letters"
    return unpack(found[1])


def test_the_page_holds_the_plan() -> None:
    given = side()
    assert given.schedule
    data = data_of(page("cut", [given]))
    assert data == json.loads(json.dumps(page_data("cut", [given])))
    (shown,) = data["sides"]
    assert shown["plan"] == json.loads(plan_json(given.schedule))
    assert [step["key"] for step in shown["steps"]] == [step.key for step in given.schedule.steps]
    assert sorted(shown["lanes"]) == sorted({step.lane for step in given.schedule.steps})
    assert [run["load"] for run in shown["runs"]] == list(LOADS)


def test_times_waits_and_exposure_are_those_of_the_timeline() -> None:
    given = side()
    shown = data_of(page("cut", [given]))["sides"][0]
    for run, timeline in zip(shown["runs"], given.predicted, strict=True):
        for event, row in zip(timeline.events, run["events"], strict=True):
            assert shown["steps"][row[0]]["key"] == event.step
            assert row[1:3] == pytest.approx([event.start, event.end], abs=1e-9)
            assert (row[4], row[5], row[9]) == (event.waited_for, event.impl, round(event.work.flops))
        assert sum(end - start for start, end, *_ in run["exposed"]) == pytest.approx(timeline.exposed_transfer)
        for start, end, step, why in run["exposed"]:
            assert shown["steps"][step]["look"] in ("dispatch", "combine")
            assert end > start and why
        assert sum(seconds for _, seconds in run["spent"]) == pytest.approx(timeline.total)
        assert [shown["steps"][i]["key"] for i in run["critical"]] == list(timeline.critical_path)
    assert given.schedule
    for step, row in zip(given.schedule.steps, shown["steps"], strict=True):
        assert [shown["steps"][wait[0]]["key"] for wait in row["waits"]] == [wait.step for wait in step.waits]


def test_resources_are_those_that_steps_take() -> None:
    shown = data_of(page("cut", [side()]))["sides"][0]
    run = shown["runs"][-1]
    assert run["resources"] == ["116 SMs · comp", "16 SMs · comm", "SMs that are free", "link in a node"]
    for row in run["events"]:
        step, taken = shown["steps"][row[0]], {run["resources"][i] for i in row[11]}
        if step["kind"] == "all2all":
            assert taken == {"16 SMs · comm", "link in a node"}
        elif step["look"] in ("compute", "memory"):
            assert taken <= {"116 SMs · comp", "SMs that are free"} and taken
        else:
            assert not taken, "what is only latency takes nothing"


def test_steps_know_their_lines() -> None:
    given = side()
    assert given.schedule and given.program
    shown = data_of(page("cut", [given]))["sides"][0]
    lines = given.program.text.splitlines()
    for step in shown["steps"]:
        assert repr(step["key"]) in lines[step["code"] - 1]
        if step["key"].startswith("sent"):
            assert step["source"] == [0, 3, 3]
    assert step_lines("with a.step('x'):\n  pass\nwith open('y'):\n  pass\n") == {"x": 1}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]


def test_text_of_others_is_never_html() -> None:
    given = replace(side(), name=HOSTILE)
    text = page(HOSTILE, [given], fallback=HOSTILE)
    seen, plain = Tags(), Tags()
    seen.feed(text)
    plain.feed(page("cut", [side()]))
    assert seen.tags == plain.tags and "img" not in seen.tags
    assert seen.links == ["#table-head"], "nothing is fetched"
    assert "default-src 'none'" in text and "unsafe-inline" not in text
    assert data_of(text)["sides"][0]["name"] == HOSTILE


def test_pages_are_small_and_the_same_each_time() -> None:
    assert page("cut", [side()]) == page("cut", [side()])
    assert len(page("two", [side(), side(1, "serial")]).encode()) < 300_000
    assert len(page("large", [large()]).encode()) < LIMIT


def test_a_measurement_stands_beside_the_prediction() -> None:
    given = with_trace()
    shown = data_of(page("cut", [given]))["sides"][0]
    assert [run["rank"] for run in shown["measured"]] == [0, 1]
    for run in shown["measured"]:
        for step, start, end, *_ in run["events"]:
            assert end - start == pytest.approx((10 * (step + 1) + run["rank"]) * 1e-6)
        assert "measured" in run["headline"]


def test_a_trace_alone_makes_a_page() -> None:
    from epsc.render.html import Side
    from epsc.render.measured import measured

    schedule = side().schedule
    assert schedule
    shown = data_of(page("run", [Side("run", measured=measured("run.json", trace(schedule)))]))["sides"][0]
    assert shown["plan"] is None and shown["graph"] is None
    assert {step["key"] for step in shown["steps"]} == set(schedule.step)


@pytest.mark.parametrize(
    ("low", "high", "loads"),
    [
        (512, 4096, (512, 1024, 2048, 4096)),
        (4096, 4096, (4096,)),
        (100, 1000, (100, 125, 250, 500, 1000)),
        (0, 0, (0,)),
    ],
)
def test_loads_cover_the_range(low: int, high: int, loads: tuple[int, ...]) -> None:
    assert loads_between(low, high) == loads


def test_at_most_eight_loads() -> None:
    assert len(loads_between(1, 1 << 20)) == 8


def test_packing_keeps_all() -> None:
    assert unpack(pack({"a": [HOSTILE, 1.5, None]})) == {"a": [HOSTILE, 1.5, None]}
