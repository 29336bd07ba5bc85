"""`epsc inspect` writes pictures as files, of what was asked for and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from epsc import driver
from epsc.cli import cli
from epsc.ir.errors import EpsError
from tests.render.pages import trace

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps"


def inspect(*arguments: str) -> str:
    result = CliRunner().invoke(
        cli, ["inspect", str(EXAMPLE), *arguments], catch_exceptions=False, standalone_mode=False
    )
    return result.output


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A trace of the example's first schedule."""
    plan = driver.plan(driver.understand(driver.read(EXAMPLE)))
    path = tmp_path / "run.json"
    path.write_text(trace(plan.schedule))
    return str(path)


def test_page_and_trace_at_once(tmp_path: Path, run: str) -> None:
    page, perfetto = tmp_path / "a/page.html", tmp_path / "trace.json"
    told = inspect("--html", str(page), "--perfetto", str(perfetto), "--measured", run)
    assert f"wrote {page}" in told and f"wrote {perfetto}" in told
    assert page.read_text().startswith("<!doctype html>")
    processes = [
        e["args"]["name"] for e in json.loads(perfetto.read_text())["traceEvents"] if e["name"] == "process_name"
    ]
    assert {"rank 1, predicted", "rank 1, measured"} <= set(processes)


def test_the_code_line_is_that_of_what_compile_writes(tmp_path: Path) -> None:
    from epsc.render.html import step_lines

    plan = driver.plan(driver.understand(driver.read(EXAMPLE)))
    text = driver.write(plan).text
    lines = step_lines(text)
    assert lines.keys() == plan.schedule.step.keys(), "every step is issued somewhere"
    assert all(
        f'step("{key}"' in "".join(text.splitlines()[no - 1 : no + 1]).replace(" ", "") for key, no in lines.items()
    )


def test_schedules_are_printed_below_each_other() -> None:
    told = inspect("-s", "eps", "-s", "serial", "--gantt")
    assert [line.split(",")[0] for line in told.splitlines() if "tokens per rank" in line] == ["eps", "serial"]


EIGHT = ("-s", "serial", "-D", "ep=8")


def test_ranks_that_are_not_alike(tmp_path: Path) -> None:
    told = [line for line in inspect("--gantt", *EIGHT, "--skew", "2").splitlines() if "tokens per rank" in line]
    assert [line.split(",")[2].split(" with")[0].strip() for line in told] == ["rank 0", "ranks 1-7"]
    assert "rank 0 with 2 x the rows" in inspect("--svg", *EIGHT, "--skew", "2")
    page, perfetto = tmp_path / "page.html", tmp_path / "trace.json"
    inspect("--html", str(page), "--perfetto", str(perfetto), *EIGHT, "--skew", "2")
    assert "ranks 1-7 with 0.857 x the rows" in page.read_text(), "where scripts are off, too"
    ends = dict[int, float]()
    for event in json.loads(perfetto.read_text())["traceEvents"]:
        if event["ph"] == "X" and event["args"]["role"] == "compute":
            ends[event["pid"]] = max(ends.get(event["pid"], 0.0), event["ts"] + event["dur"])
    assert ends[0] > ends[1] and len(set(ends.values())) == 2, "the busiest works longer"
    with pytest.raises(EpsError, match="no rank of 8 can have 9 times"):
        inspect("--gantt", *EIGHT, "--skew", "9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--skew 2 --json", "--skew is about times, and --json shows none"),
        ("--skew 2 --svg --graph", "--skew is about times, and --graph shows none"),
        ("--skew 2 --graph", "--skew is about times, and --graph shows none"),
        ("--html page.html --json", "--json is printed, and --html writes a file"),
        ("--measured run.json", "--measured is shown in what"),
        ("-s eps -s serial --json", "--json shows one schedule"),
        ("-s eps -s serial --perfetto t.json", "--perfetto traces one schedule"),
        ("-s eps -s serial --html page.html --measured run.json", "a run of one schedule"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: str, message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        CliRunner().invoke(
            cli, ["inspect", str(EXAMPLE), *arguments.split()], catch_exceptions=False, standalone_mode=False
        )


def test_a_run_of_another_schedule_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(EpsError, match="is no trace of `serial`"):
        inspect("-s", "serial", "--html", str(tmp_path / "page.html"), "--measured", run)
    assert not (tmp_path / "page.html").exists()
