"""Of a layer that was read from Python, everything that shows an op says which lines it was read from."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import epsc
from epsc import driver
from epsc.cli import main
from epsc.commands.pictures import html, trace
from epsc.grammar import format_spec, parse
from epsc.ir.source import Source
from epsc.render.html.page import unpack
from epsc.render.plan import plan_json, plan_parse
from tests.render.browser import browser, missing
from tests.trace import styles
from tests.trace.styles import HIDDEN, Dense

MORE = """
cluster two { device = h200  ep = 2 }
tokens 64 .. 64
schedule cut { split sent, h, back by expert_group into 2 }
"""
READ = {
    "r": ("self.gate(x)", "scores.topk("),
    "sent": ("expert(x) for e",),
    "h": ("self.w1(x)",),
    "back": ("self.w2(", "expert(x) for e"),
    "shared": ("self.w1(x)", "self.always(x)"),
    "return": ("self.always_gate(x)",),
}
"""Of each statement of the traced block: what stands in the lines that it was read from."""


def line_of(text: str) -> int:
    """The line of `styles.py` that `Dense` has this in."""
    lines = Path(styles.__file__).read_text().splitlines()
    own, first = inspect.getsourcelines(Dense)
    found = [i for i in range(first, first + len(own)) if text in lines[i - 1]]
    return (found or [i + 1 for i, line in enumerate(lines) if text in line])[0]


def run(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setattr(sys, "argv", ["epsc", *arguments])
        main()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `epsc trace` writes, with a schedule below."""
    path = tmp_path_factory.mktemp("traced") / "dense.eps"
    run("trace", "tests.trace.styles:Dense", "-o", str(path))
    path.write_text(path.read_text() + MORE)
    return path


@pytest.fixture(scope="module")
def plan(file: Path) -> driver.Plan:
    return driver.plan(driver.understand(driver.read(file)))


def test_each_statement_names_the_lines_that_it_was_read_from() -> None:
    layer = epsc.trace(Dense().eval(), torch.randn(2, 5, HIDDEN))
    assert parse(Source("dense.eps", layer.text)) == layer.spec
    assert format_spec(layer.spec) == layer.text
    for statement in layer.spec.layers[0].body:
        name = getattr(statement, "name", "return")
        told = [re.fullmatch(r"\S*styles\.py:(\d+): (.*)", comment) for comment in statement.comments.above]
        assert [int(found[1]) for found in told if found] == [line_of(text) for text in READ[name]]
        assert all(text in found[2] for text, found in zip(READ[name], told, strict=True) if found)


def test_what_the_return_makes_says_where_the_experts_are() -> None:
    """Experts that hand tokens back are called where the others are, and a shared branch is added elsewhere."""

    class Both(styles.Identities):
        def __init__(self) -> None:
            super().__init__()
            self.always = styles.Expert()

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) + self.always(hidden)

    layer = epsc.trace(Both().eval(), torch.randn(2, 5, HIDDEN))
    assert "+ identity(x, r" in layer.text
    told = {getattr(each, "name", "return"): set(each.comments.above) for each in layer.spec.layers[0].body}
    assert told["sent"] and told["sent"] < told["return"]


def test_every_op_of_the_plan_has_them(plan: driver.Plan) -> None:
    for node in plan.schedule.graph.nodes:
        assert node.places, node.name
        # Inside a `return`, ops come from what is called there.
        read = READ.get(node.origin, READ["return"])
        assert {place.line for place in node.places} >= {line_of(read[-1])}, node.name


def test_the_json_plan_holds_them(plan: driver.Plan) -> None:
    text = plan_json(plan.schedule)
    nodes = json.loads(text)["schedule"]["graph"]["nodes"]
    assert all(node["places"][0]["file"].endswith("styles.py") for node in nodes)
    assert plan_json(plan_parse(text)) == text


def test_the_trace_holds_them(plan: driver.Plan) -> None:
    slices = [event for event in json.loads(trace(plan))["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in slices} == {step.key for step in plan.schedule.steps}
    for event in slices:
        places = plan.schedule.node(plan.schedule.step[event["name"]]).places
        assert event["args"]["python"] == "; ".join(place.comment for place in places)


def test_the_program_says_them_above_each_step(plan: driver.Plan) -> None:
    text = driver.write(plan).text
    for step in plan.schedule.steps:
        comment = text[text.index(f"# {step.key}, on ") :]
        comment = comment[: comment.index(".step(")]
        last = plan.schedule.node(step).places[-1]
        assert re.search(rf"# From .*:{last.line}\b", comment), step.key
    assert "# From styles.py" in text and f"styles.py:{line_of('scores.topk(')}: weights, ids = scores.topk(" in text
    assert max(len(line) for line in text.splitlines() if "# From" in line) <= 110


def test_the_table_of_steps_and_what_is_exposed_say_them(
    file: Path, plan: driver.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    run("inspect", str(file), "--steps")
    run("explain", str(file))
    steps, _, told = capsys.readouterr().out.partition("where the time goes")
    rows = {line.split()[1]: line for line in steps.splitlines() if re.match(r" *\d+  ", line)}
    assert rows["sent.permute"].endswith(f"styles.py:{line_of(READ['sent'][0])}")
    assert len(rows) == len(plan.schedule.steps)
    assert f"(styles.py:{line_of(READ['sent'][0])}): " in told


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_the_page_shows_them(plan: driver.Plan, chromium: Any, tmp_path: Path) -> None:
    text = html([plan])
    (side,) = unpack(text[: text.index("</script>\n<script>")].rpartition(">")[2])["sides"]
    assert all(step["python"] for step in side["steps"])
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    assert not page.locator("#python-body").is_visible()
    for step in plan.schedule.steps:
        page.evaluate("(key) => epsc.select(0, epsc.state.sides[0].byKey.get(key), null)", step.key)
        places = plan.schedule.node(step).places
        facts = page.locator("#facts").inner_text()
        assert all(f"styles.py, line {place.line}" in facts for place in places)
        shown = page.locator("#python-body div").all_inner_texts()
        assert shown == [f"{place.line}{place.text}" for place in places]
    page.close()
