"""`epsc diff`: what two schedules decide otherwise, and what each op takes in both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from epsc import driver
from epsc.cli import cli
from epsc.ir.errors import EpsError
from epsc.machine.simulate import simulate
from epsc.render.amounts import duration
from epsc.render.plan import plan_json
from tests.render.pages import trace

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps"


def diff(*arguments: str) -> list[str]:
    result = CliRunner().invoke(cli, ["diff", *arguments], catch_exceptions=False, standalone_mode=False)
    return result.output.splitlines()


def row(lines: list[str], op: str) -> list[str]:
    """The cells of an op."""
    (found,) = (line for line in lines if re.match(rf"{re.escape(op)}  ", line))
    return re.split(r"\s{2,}", found)


def plan(name: str) -> driver.Plan:
    layer = driver.understand(driver.read(EXAMPLE), driver.Options(defines={"tokens": "4096"}))
    return driver.plan(layer, name)


def test_two_schedules_of_a_file() -> None:
    lines = diff(f"{EXAMPLE}:serial", ":eps", "-D", "tokens=4096")
    totals = []
    for name in ("serial", "eps"):
        made = plan(name)
        timeline = simulate(made.schedule, made.layer.cluster, 4096)
        totals.append((timeline.total, timeline.exposed_transfer))
    (total_a, exposed_a), (total_b, exposed_b) = totals
    assert row(lines, "whole layer")[1:3] == [duration(total_a), duration(total_b)]
    assert row(lines, "exposed transfer")[1:3] == [duration(exposed_a), duration(exposed_b)]
    sign = "+" if total_b > total_a else "-"
    assert row(lines, "whole layer")[3] == f"{sign}{duration(abs(total_b - total_a))}"
    pieces = sum(step.node == "sent.all2all" for step in plan("eps").schedule.steps)
    assert row(lines, "sent.all2all")[1].startswith(f"1 -> {pieces} by ")
    ops = {line.partition(" ")[0] for line in lines[5:]}
    assert {step.node for name in ("serial", "eps") for step in plan(name).schedule.steps} <= ops


def test_a_schedule_is_the_same_as_itself() -> None:
    lines = diff(f"{EXAMPLE}:eps", ":eps")
    assert all(line.endswith("same") for line in lines[5:] if " 0  " not in line)
    assert not any("->" in line for line in lines)


def test_plans_as_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(plan_json(plan("serial").schedule))
    b.write_text(plan_json(plan("eps").schedule))
    lines = diff(str(a), str(b))
    assert row(lines, "whole layer")[1:] == ["-", "-", "-"]
    timed = diff(str(a), str(b), "--profile", "h200x2", "-D", "tokens=4096")
    said = diff(f"{EXAMPLE}:serial", ":eps", "-D", "tokens=4096", "--profile", "h200x2")
    assert row(timed, "whole layer") == row(said, "whole layer")


def test_runs_count_the_slowest_rank(tmp_path: Path) -> None:
    a = tmp_path / "a.json"
    schedule = plan("serial").schedule
    a.write_text(trace(schedule))
    lines = diff(str(a), str(a))
    for i, step in enumerate(schedule.steps):
        assert row(lines, step.node)[-3:] == [duration((10 * (i + 1) + 1) * 1e-6)] * 2 + ["same"]
    mixed = diff(f"{EXAMPLE}:serial", str(a), "-D", "tokens=4096")
    assert row(mixed, "down")[-2] == row(lines, "down")[-2]


def test_a_page_of_both(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert diff(f"{EXAMPLE}:serial", ":eps", "--html", str(page))[-1] == f"wrote {page}"
    assert "<title>serial and eps</title>" in page.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not-json|Expecting"), ("[]", "a plan is an object"), ('{"traceEvents": []}', "holds no step that ran")],
)
def test_files_that_are_neither_are_refused(text: str, message: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    with pytest.raises(EpsError, match=message):
        diff(str(bad), str(bad))
