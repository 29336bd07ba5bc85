"""The page in a real browser: it opens from disk, shows what the plan says, and can be used by mouse and keyboard.

Skipped where there is no Chromium.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from epsc.render.amounts import duration
from epsc.render.html import page
from tests.render.browser import axe, browser, missing
from tests.render.pages import HOSTILE, LOADS, large, side, skewed_side, with_trace

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
OVERLAPS = """() => {
  const found = [], boxes = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, owner = node.parentElement;
    if (!node.textContent.trim() || owner.closest('.skip,.hidden,script,noscript,#tip,[hidden]')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      // What scrolls away or is cut off is not seen.
      let left = box.left, right = box.right, top = box.top, bottom = box.bottom;
      for (let up = owner; up && up !== document.body; up = up.parentElement) {
        if (getComputedStyle(up).overflowX === 'visible') continue;
        const edge = up.getBoundingClientRect();
        left = Math.max(left, edge.left); right = Math.min(right, edge.right);
        top = Math.max(top, edge.top); bottom = Math.min(bottom, edge.bottom);
      }
      if (right - left > 2 && bottom - top > 2) boxes.push({ left, right, top, bottom, text: node.textContent, node });
    }
  }
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
    if (a.node === b.node) return;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1.5 && high > 3.5) found.push([a.text, b.text]);
  }));
  return found;
}"""

WRITTEN = """() => {
  const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
  window.written = new Map();
  CanvasRenderingContext2D.prototype.clearRect = function (...args) {
    window.written.set(this.canvas, []);
    return clearRect.apply(this, args);
  };
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    window.written.get(this.canvas).push([text, x, x + this.measureText(text).width, y]);
    return fillText.call(this, text, x, y);
  };
}"""
"""Keeps what each canvas says now, and where: text on a canvas is no text to the browser."""
ON_CANVAS = """() => [...window.written.values()].flatMap((texts) => texts.flatMap((a, i) => texts.slice(i + 1)
  .filter((b) => Math.min(a[2], b[2]) - Math.max(a[1], b[1]) > 1 && Math.abs(a[3] - b[3]) < 9)
  .map((b) => [a[0], b[0]])))"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


class Shown:
    """A page that was opened, with all that it said or asked for."""

    def __init__(self, chromium: Any, text: str, folder: Path, width: int = 1280, scheme: str = "light") -> None:
        path = folder / "page.html"
        path.write_text(text, encoding="utf-8")
        self.page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url))
        self.page.add_init_script(f"({WRITTEN})()")
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")
        assert self.said.pop(0) == path.as_uri()

    def facts(self) -> dict[str, str]:
        terms, told = (self.page.locator(f"#facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(terms, told, strict=True))

    def middle(self, step: str, panel: int = 0) -> tuple[float, float]:
        """Where the bar of a step is, in the window."""
        x, y = self.page.evaluate(
            """([key, panel]) => {
              const each = epsc.timelines[panel], step = each.side.byKey.get(key), event = each.run.at.get(step);
              const row = each.rowOf(step), box = each.canvas.getBoundingClientRect();
              return [box.left + each.x((event[1] + event[2]) / 2), box.top + row.y + row.height / 2];
            }""",
            [step, panel],
        )
        return x, y

    def ink(self, colour: str, panel: int = 0) -> int:
        """Pixels of a canvas that have this very colour."""
        return int(
            self.page.evaluate(
                """([name, panel]) => {
                  const probe = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
                  probe.fillStyle = epsc.colour(name); probe.fillRect(0, 0, 1, 1);
                  const want = probe.getImageData(0, 0, 1, 1).data, { canvas } = epsc.timelines[panel];
                  probe.canvas.width = canvas.width; probe.canvas.height = canvas.height;
                  probe.drawImage(canvas, 0, 0);
                  const { data } = probe.getImageData(0, 0, canvas.width, canvas.height);
                  let count = 0;
                  for (let i = 0; i < data.length; i += 4) {
                    if (data[i] === want[0] && data[i + 1] === want[1] && data[i + 2] === want[2]) count += 1;
                  }
                  return count;
                }""",
                [colour, panel],
            )
        )


def rested(shown: Shown) -> None:
    """Two frames later everything is drawn."""
    shown.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def cut(chromium: Any, tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(chromium, page("cut", [side()]), tmp_path)
    yield shown
    assert shown.said == [], "no message, no fault, no request"
    shown.page.close()


def test_lanes_and_steps_are_those_of_the_plan(cut: Shown) -> None:
    schedule = side().schedule
    assert schedule
    rows = cut.page.evaluate(
        "() => epsc.timelines[0].rows.filter((r) => r.kind === 'lane')"
        ".map((r) => [r.label, r.items.map((i) => epsc.timelines[0].side.steps[i.step].key)])"
    )
    assert {label.split(" · ")[1]: keys for label, keys in rows} == {
        lane.name: [step.key for step in schedule.steps if step.lane == lane.name]
        for lane in schedule.lanes
        if any(step.lane == lane.name for step in schedule.steps)
    }
    table = cut.page.locator("[role=table]")
    assert int(table.get_attribute("aria-rowcount")) == len(schedule.steps) + 1
    assert [row.get_attribute("data-key") for row in cut.page.locator(".window .row").all()[:8]] == [
        step.key for step in schedule.steps[:8]
    ]
    for look in ("compute", "memory", "dispatch", "combine", "bad"):
        assert cut.ink(look) > 50, f"{look} is drawn"


def test_a_click_shows_what_a_step_is_and_waits_for(cut: Shown) -> None:
    key = "up[expert_group:1/3]"
    cut.page.mouse.click(*cut.middle(key))
    facts = cut.facts()
    assert facts["step"].startswith(key) and "part 2 of 3 by expert_group" in facts["step"]
    assert facts["implementation"].startswith(("grouped", "dense"))
    assert {"lane", "SMs", "rows", "memory", "FLOP", "predicted", "emitted as"} <= facts.keys()
    assert key in cut.page.locator("#program-body .here").first.inner_text()
    cut.page.mouse.click(*cut.middle("sent[expert_group:0/3]"))
    facts = cut.facts()
    assert "sent.all2all[expert_group:0/3]" in facts["waits for"]
    assert facts["from"] == "moe.eps, line 3"
    assert cut.page.locator("#source-body .here").inner_text().endswith("sent = dispatch(x, r)")
    cut.page.locator("#facts dd button").first.click()
    assert cut.facts()["step"].startswith("sent.all2all[expert_group:0/3]")
    assert cut.page.locator("#graph g[aria-pressed=true]").get_attribute("data-name") == "sent.all2all"


def test_hovering_draws_what_is_waited_for(cut: Shown) -> None:
    plain = cut.ink("accent")
    cut.page.mouse.move(*cut.middle("sent[expert_group:1/3]"))
    rested(cut)
    assert cut.ink("accent") > plain + 20
    assert "sent[expert_group:1/3]" in cut.page.locator("#tip").inner_text()
    cut.page.mouse.move(5, 5)
    rested(cut)
    assert cut.ink("accent") == plain and not cut.page.locator("#tip").is_visible()


def test_loads_switch(cut: Shown) -> None:
    head = cut.page.locator(".panel h2")
    assert f"{LOADS[-1]} tokens per rank" in head.inner_text()
    before = cut.page.evaluate("epsc.total")
    cut.page.locator(f"#loads button[data-load='{LOADS[0]}']").click()
    assert f"{LOADS[0]} tokens per rank" in head.inner_text()
    assert cut.page.evaluate("epsc.total") < before
    assert cut.page.locator("#loads [aria-pressed=true]").inner_text() == str(LOADS[0])


def test_keys_alone_are_enough(cut: Shown) -> None:
    cut.page.locator("canvas").focus()
    cut.page.keyboard.press("ArrowRight")
    first = cut.facts()["step"]
    cut.page.keyboard.press("ArrowRight")
    assert cut.facts()["step"] != first
    lane = cut.facts()["lane"]
    cut.page.keyboard.press("ArrowDown")
    assert cut.facts()["lane"] != lane
    assert cut.page.locator("#said").inner_text().startswith(cut.facts()["step"].split(" ")[0])
    whole = cut.page.evaluate("epsc.view.to - epsc.view.from")
    cut.page.keyboard.press("+")
    assert cut.page.evaluate("epsc.view.to - epsc.view.from") < whole
    cut.page.keyboard.press("0")
    assert cut.page.evaluate("epsc.view.to - epsc.view.from") == pytest.approx(whole)
    cut.page.keyboard.press("Escape")
    assert cut.facts() == {}
    cut.page.locator(".window button").nth(2).focus()
    cut.page.keyboard.press("Enter")
    assert cut.facts()["step"].startswith("sent.exchange")
    assert cut.page.evaluate("document.activeElement.innerText") == "sent.exchange", "the focus stays where it was"


def test_exposed_time_is_marked_and_named(cut: Shown) -> None:
    """On the timeline itself: how long nothing hides which transfer, in its bar or beside it."""
    written = [text for texts in cut.page.evaluate("() => [...window.written.values()]") for text, *_ in texts]
    exposed = cut.page.evaluate("() => epsc.timelines[0].run.exposed")
    assert exposed and "exposed transfer" in written
    steps = side().schedule
    assert steps
    start, end, step, _ = max(exposed, key=lambda each: each[1] - each[0])
    assert f"{steps.steps[step].node.partition('.')[0]} {duration(end - start)}" in written


def test_without_a_selection_it_says_what_is_exposed(cut: Shown) -> None:
    told = cut.page.locator("#facts").inner_text()
    assert "What is exposed" in told and re.search(r"(us|ms) (sent|back)\.all2all\[", told)


def test_two_schedules_share_one_axis(chromium: Any, tmp_path: Path) -> None:
    shown = Shown(chromium, page("two", [side(), side(1, "serial")]), tmp_path)
    assert shown.page.locator("canvas").count() == 2
    ends = shown.page.evaluate("() => epsc.timelines.map((t) => t.x(0.001))")
    assert ends[0] == ends[1]
    shown.page.locator("#zoom-in").click()
    rested(shown)
    ends = shown.page.evaluate("() => epsc.timelines.map((t) => t.x(0.001))")
    assert ends[0] == ends[1] and shown.said == []


def test_measured_ranks_stand_below_the_prediction(chromium: Any, tmp_path: Path) -> None:
    shown = Shown(chromium, page("run", [with_trace()]), tmp_path)
    heads = shown.page.locator(".panel h2").all_inner_texts()
    assert len(heads) == 3 and "predicted" in heads[0] and "rank 1, measured" in heads[2]
    shown.page.mouse.click(*shown.middle("mlp"))
    facts = shown.facts()
    assert {"predicted", "measured, rank 0", "measured, rank 1"} <= facts.keys()
    assert shown.said == []


def test_ranks_that_are_not_alike_have_lanes_of_their_own(chromium: Any, tmp_path: Path) -> None:
    shown = Shown(chromium, page("skewed", [skewed_side(), side(1, "serial")]), tmp_path)
    heads = [head.replace("\n", " ") for head in shown.page.locator(".panel h2").all_inner_texts()]
    assert len(heads) == 3, "ranks that are alike are shown once"
    assert "rank 0 with 2 x the rows" in heads[0] and "ranks 1-7 with 0.857 x the rows" in heads[1]
    said = shown.page.locator(".panel .said").all_inner_texts()
    assert "waiting for busier ranks" in said[1] and "every rank alike" in heads[2]
    assert "exposed" in shown.page.locator(".panel .said .bad").first.inner_text()
    labels = "() => epsc.timelines.map((t) => t.rows[0].label.split(' · ')[0])"
    assert shown.page.evaluate(labels) == ["rank 0", "ranks 1-7", "ranks 0–7"]
    key = "back.all2all[expert_group:0/3]"
    shown.page.evaluate("(key) => epsc.select(0, epsc.state.sides[0].byKey.get(key), epsc.timelines[1])", key)
    facts = shown.facts()
    assert "until all ranks have come" in facts["predicted, ranks 1-7"]
    assert "until all ranks have come" not in facts["predicted, rank 0"]
    rows = facts["rows"]
    shown.page.locator("#ranks button", has_text="rank 0").first.click()
    assert shown.page.evaluate(labels) == ["rank 0", "ranks 0–7"] and "predicted, ranks 1-7" not in shown.facts()
    assert shown.facts()["rows"] != rows, "those of the rank that is shown"
    shown.page.locator("#ranks button", has_text="all ranks").click()
    shown.page.locator(f"#loads button[data-load='{LOADS[0]}']").click()
    assert shown.page.evaluate("epsc.timelines.map((t) => t.run.load)") == [LOADS[0]] * 3
    assert shown.said == []


def test_hostile_names_are_text(chromium: Any, tmp_path: Path) -> None:
    shown = Shown(chromium, page(HOSTILE, [replace(side(), name=HOSTILE), side()], HOSTILE), tmp_path)
    assert shown.page.evaluate("window.hacked") is None and shown.page.locator("img").count() == 0
    assert shown.page.title() == HOSTILE and HOSTILE in shown.page.locator("#source-body").inner_text()
    assert shown.said == []


def test_five_thousand_steps_at_once(chromium: Any, tmp_path: Path) -> None:
    text = page("large", [large()])
    start = time.monotonic()
    shown = Shown(chromium, text, tmp_path)
    shown.page.evaluate("epsc.look(0.0124, 0.0126)")
    shown.page.mouse.click(*shown.middle("up[tokens:1250/2500]"))
    assert shown.facts()["step"].startswith("up[tokens:1250/2500]")
    ready = shown.page.evaluate("epsc.readyAfter")
    assert ready < 2000, "milliseconds until it was drawn for the first time"
    assert time.monotonic() - start < 10, "opened and answered, on a busy machine"
    frames = shown.page.evaluate(
        """async () => {
          const times = [];
          for (let i = 0; i < 40; i += 1) {
            const start = performance.now();
            if (i < 20) epsc.zoom(0.8); else epsc.pan(0.1);
            epsc.timelines.forEach((each) => each.draw());
            times.push(performance.now() - start);
            await new Promise(requestAnimationFrame);
          }
          return times.sort((a, b) => a - b);
        }"""
    )
    assert frames[len(frames) // 2] < 16, "half of all frames fit 60 Hz, on two busy cores"
    shown.page.evaluate("document.querySelector('.window').scrollTop = 60000")
    rested(shown)
    rows = shown.page.locator(".window .row")
    assert rows.count() < 60 and rows.first.get_attribute("data-key") != "sent.all2all[tokens:0/2500]"
    assert shown.said == []


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_lies_on_another(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    shown = Shown(chromium, page("two", [with_trace(), skewed_side()]), tmp_path, width, scheme)
    for _ in ("what is exposed", "a step"):
        rested(shown)
        assert shown.page.evaluate(OVERLAPS) == []
        assert shown.page.evaluate(ON_CANVAS) == []
        shown.page.mouse.click(*shown.middle("sent[expert_group:0/3]"))
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


@pytest.mark.skipif(axe() is None, reason="axe-playwright-python, which holds axe-core, is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(chromium: Any, tmp_path: Path, scheme: str) -> None:
    shown = Shown(chromium, page("two", [with_trace(), side(1, "serial")]), tmp_path, scheme=scheme)
    shown.page.mouse.click(*shown.middle("sent[expert_group:0/3]"))
    script = axe()
    assert script
    shown.page.evaluate(script.read_text(encoding="utf-8") + ";0")
    found = shown.page.evaluate(
        "async () => (await axe.run()).violations.map((v) => [v.impact, v.id, v.nodes[0].html])"
    )
    assert [each for each in found if each[0] in ("serious", "critical")] == []


def test_a_switch_shows_the_plan_of_each_range_of_load(chromium: Any, tmp_path: Path) -> None:
    few, many = side(2, "few"), side(4, "many")
    few = replace(few, range=(512, LOADS[0]), predicted=few.predicted[:1])
    many = replace(many, range=(LOADS[0] + 1, LOADS[1]), predicted=many.predicted[1:])
    shown = Shown(chromium, page("by load", [few, many]), tmp_path)
    buttons = shown.page.locator("#plans button")
    assert buttons.all_inner_texts() == [f"few: 512 to {LOADS[0]}", f"many: {LOADS[0] + 1} to {LOADS[1]}"]

    def expect(plan: Any, pressed: list[str]) -> None:
        assert [each.get_attribute("aria-pressed") for each in buttons.all()] == pressed
        keys = shown.page.evaluate("epsc.timelines.map((each) => each.side.steps.map((step) => step.key))")
        assert keys == [[step.key for step in plan.schedule.steps]]
        lanes = shown.page.evaluate("epsc.timelines[0].side.plan.schedule.lanes.map((lane) => lane.name)")
        assert lanes == [lane.name for lane in plan.schedule.lanes]
        assert shown.page.locator("#panels .panel").count() == 1
        assert shown.page.locator("#tables > div:not([hidden])").count() == 1

    expect(many, ["false", "true"])
    buttons.nth(0).focus()
    shown.page.keyboard.press("Enter")
    expect(few, ["true", "false"])
    assert shown.page.locator("#said").inner_text() == f"{LOADS[0]} tokens per rank, plan few"
    shown.page.locator(f"#loads button[data-load='{LOADS[1]}']").click()
    expect(many, ["false", "true"])
    assert not shown.said
