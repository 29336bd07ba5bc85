"""Pages to look at: of a small schedule, of two, of a trace, of names that nobody should trust, and of 5,000 steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from epsc.ir.dims import Axis, Cut
from epsc.ir.schedule import Hazard, Ref, Schedule, Step, Wait
from epsc.ir.source import Source, Span
from epsc.machine.cluster import Cluster
from epsc.machine.ranks import simulate_ranks, skewed
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Event, Timeline
from epsc.machine.work import Work
from epsc.render.html import Side
from epsc.render.measured import measured
from tests.machine.schedules import eps

HOSTILE = '</script><img src=x onerror="window.hacked=1">&\'`${1}'
LOADS = (1024, 8192)


def side(groups: int = 3, name: str = "cut") -> Side:
    schedule = replace(eps(groups), name=name)
    source = Source("moe.eps", f"# {HOSTILE}\nlayer layer(x) {{\n  sent = dispatch(x, r)\n}}\n")
    start = source.text.index("sent =")
    span = Span(source, start, start + 20)
    nodes = tuple(replace(node, span=span) if node.origin == "sent" else node for node in schedule.graph.nodes)
    schedule = replace(schedule, graph=schedule.graph.with_nodes(nodes))
    cluster = Cluster.make("h", "h200", 8)
    return Side(
        name, schedule, tuple(simulate(schedule, cluster, load) for load in LOADS), None, program(schedule), (source,)
    )


def skewed_side(skew: float = 2.0) -> Side:
    """The same where rank 0 has more rows than the others."""
    found = side()
    assert found.schedule
    cluster, shares = Cluster.make("h", "h200", 8), skewed(8, skew)
    timelines = [each for load in LOADS for each in simulate_ranks(found.schedule, cluster, load, shares)]
    return replace(found, predicted=tuple(timelines))


def program(schedule: Schedule) -> Source:
    lines = [f"def forward(self):  # {HOSTILE}"]
    for step in schedule.steps:
        lines += [f"    with self.{step.lane}.step({step.key!r}, mark=True):", "        pass"]
    return Source("moe_cut.py", "\n".join(lines) + "\n")


APART_US = 2.5
"""How far the clocks of two ranks may be apart in `trace`."""


def trace(schedule: Schedule) -> str:
    """What the program would have written on two ranks: each step takes 10 us per index, and rank 1 begins it earlier
    by one."""
    lanes = [lane.name for lane in schedule.lanes]
    events: list[dict[str, Any]] = []
    for rank in (0, 1):
        for i, lane in enumerate(lanes):
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": i, "args": {"name": lane}})
        for i, step in enumerate(schedule.steps):
            times = {"ts": i * 1000.0 + 100 - rank, "dur": 10.0 * (i + 1) + rank}
            events.append({"ph": "X", "name": step.key, "pid": rank, "tid": lanes.index(step.lane), **times})
    return json.dumps({"otherData": {"apart_us": APART_US}, "traceEvents": events})


def with_trace() -> Side:
    found = side()
    assert found.schedule
    return replace(found, measured=measured("run.json", trace(found.schedule), found.schedule))


def large(count: int = 5000) -> Side:
    """So many steps, on the lanes of `eps`: each 10 us, transfers beside products."""
    base = eps(1)
    cuts = [(Cut(Axis.TOKENS, i, count // 2),) for i in range(count // 2)]
    steps: list[Step] = []
    events: list[Event] = []
    for i, cut in enumerate(cuts):
        for name, lane in (("sent.all2all", "comm"), ("up", "comp")):
            first = base.step[name]
            step = replace(first, cuts=cut, writes=(Ref(name, cut),), reads=(), waits=())
            if name == "up":
                step = replace(step, waits=(Wait(steps[-1].key, "sent.all2all", Hazard.RAW, everywhere=i % 2 == 0),))
            steps.append(step)
            at = i * 10e-6 + (5e-6 if lane == "comp" else 0.0)
            info = base.node(step).info
            impl = "grouped" if name == "up" else "nccl"
            made = Work(1e9, 1e6, rows=64)
            events.append(Event(step.key, name, lane, info.role, at, at + 9e-6, chunk=i, impl=impl, work=made, sms=16))
    schedule = replace(base, name="large", steps=tuple(steps))
    return Side("large", schedule, (Timeline("large", 4096, ("comp", "comm"), tuple(events)),), None, program(schedule))
