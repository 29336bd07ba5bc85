"""The Gantt chart, worked out by hand where it is small, and its promises on real schedules."""

import re
from dataclasses import replace

import pytest

from epsc.ir.attrs import Direction
from epsc.ir.kinds import Role
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import duration
from epsc.render.gantt import gantt, headline
from tests.machine.schedules import eps

ESCAPES = re.compile(r"\x1b\[[\d;]*m")


def bar(lane: str, node: str, chunk: int | None, start: float, end: float, role: Role = Role.COMPUTE) -> Event:
    direction = Direction.DISPATCH if role is Role.TRANSFER else None
    return Event(f"{node}:{chunk}", node, lane, role, start, end, chunk=chunk, direction=direction)


def small() -> Timeline:
    events = (
        bar("comm", "sent.all2all", 0, 0.000, 0.010, Role.TRANSFER),
        bar("comm", "sent.all2all", 1, 0.010, 0.020, Role.TRANSFER),
        bar("comp", "up", 0, 0.010, 0.025),
        bar("comp", "up", 1, 0.025, 0.040),
    )
    return Timeline("two", 64, ("comp", "comm"), events)


def test_a_rank_that_waits_for_another_is_seen_to() -> None:
    timeline = replace(small(), ranks=(1, 2, 3, 5), share=0.8)
    waiting = replace(timeline.events[0], met=0.0041)
    drawn = gantt(replace(timeline, events=(waiting, *timeline.events[1:])), 50)
    words = " ".join(drawn.split())
    assert "two, 64 tokens per rank, ranks 1-3, 5 with 0.8 x the rows: 40.0 ms" in words
    assert "transfers 20.0 ms, 4.10 ms of it waiting for busier ranks, 10.0 ms exposed" in words
    assert "comm    |~~~~0>>>>>1>sent>>>>....................|" in drawn and "~~ waits for busier ranks" in drawn


def test_a_small_chart_by_hand() -> None:
    # 50 columns, less "exposed " and two edges, leave 40: one per millisecond.
    assert gantt(small(), 50) == "\n".join(
        [
            "two, 64 tokens per rank: 40.0 ms",
            "transfers 20.0 ms, 10.0 ms exposed (50% hidden)",
            "comp    |..........0#up###########1#up###########|",
            "comm    |0>sent>>>>1>sent>>>>....................|",
            "exposed |!!!!!!!!!!                              |",
            "         +---------+---------+---------+---------",
            "         0 ms      10        20        30",
            "## GEMM   >> to the experts   0 1 2 chunk",
            "!! a transfer that nothing hides",
        ]
    )


@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 200])
@pytest.mark.parametrize("groups", [1, 5, 20])
def test_every_chart_fits_and_is_ascii(width: int, groups: int) -> None:
    timeline = simulate(eps(groups), Cluster.make("h", "h200", 8), 8192)
    plain, coloured = gantt(timeline, width), gantt(timeline, width, color=True)
    assert plain.isascii()
    assert "\x1b" not in plain
    assert "\x1b" in coloured
    for text in (plain, ESCAPES.sub("", coloured)):
        # Bars never get narrower than 30 columns.
        assert max(map(len, text.splitlines())) <= max(width, 40)
    bars = [line for line in plain.splitlines() if line.endswith("|")]
    assert [line.split()[0] for line in bars] == ["comp", "comm", "host", "exposed"]
    assert len({len(line) for line in bars}) == 1
    for line in coloured.splitlines():
        assert line.count("\x1b[") % 2 == 0, "each colour is switched off on its line"
    # What is exposed is named at the head, and said to be what matters.
    assert " ".join(plain.replace(";", "").split()).startswith(headline(timeline).replace(";", ""))
    exposed = f"{duration(timeline.exposed_transfer)} exposed"
    if width >= 80:
        assert f"\x1b[1;31m{exposed}\x1b[0m" in coloured


def test_every_chunk_is_seen() -> None:
    timeline = simulate(eps(5), Cluster.make("h", "h200", 8), 8192)
    lanes = {line.split()[0]: line for line in gantt(timeline, 80).splitlines() if line.endswith("|")}
    for chunk in "01234":
        assert f"{chunk}#" in lanes["comp"]
        assert f"{chunk}>" in lanes["comm"]
        assert f"{chunk}<" in lanes["comm"]


def test_serial_exposes_all_and_says_so() -> None:
    timeline = simulate(eps(1, 0, overlap=False), Cluster.make("h", "h200", 8), 8192)
    text = gantt(timeline, 110)  # fine enough that no transfer fills less than half of a cell that shows it
    assert "(0% hidden)" in text
    (lane,) = (line for line in text.splitlines() if line.startswith("comp"))
    (marks,) = (line for line in text.splitlines() if line.startswith("exposed"))
    for bars, mark in zip(lane[10:-1], marks[10:-1], strict=True):
        assert mark == "!" or bars not in "<>"


@pytest.mark.parametrize(
    ("total", "unit", "last"), [(3.0, "0 s", "2"), (0.02, "0 ms", "15"), (4e-5, "0 us", "30"), (3e-9, "0 ns", "2")]
)
def test_the_axis_has_round_times(total: float, unit: str, last: str) -> None:
    timeline = Timeline("t", 1, ("comp",), (bar("comp", "up", None, 0, total),))
    numbers = gantt(timeline, 60).splitlines()[-2]
    assert numbers.strip().startswith(unit)
    assert last in numbers


def test_empty_timelines_are_drawn() -> None:
    assert gantt(Timeline("nothing", 0, (), ()), 80) == "nothing, 0 tokens per rank: 0"
    idle = Timeline("idle", 0, ("comp",), (bar("comp", "up", None, 0, 0),))
    assert gantt(idle, 80).splitlines()[0] == "idle, 0 tokens per rank: 0"
