"""What the page shows of one schedule, as plain data: steps, runs (predicted or measured), graph and texts.

The page computes nothing about schedules: what a step waits for, what is exposed and why, and what time goes to all
come from here, and `plan` is the JSON plan as `epsc inspect --json` prints it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from epsc.ir.impls import Bound, Resource, impls_of
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Step
from epsc.ir.source import Source
from epsc.machine.needs import makers_of
from epsc.machine.reasons import exposures, spent
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import ranks_words
from epsc.render.gantt import head_words, headline
from epsc.render.layered import layered
from epsc.render.looks import look_of, look_of_node
from epsc.render.measured import Measured
from epsc.render.plan import plan_json

_MOST_LOADS = 8
_FREE = "SMs that are free"
_LINKS = {
    Resource.COPY_ENGINE: "copy engines",
    Resource.INTRA_LINK: "link in a node",
    Resource.INTER_LINK: "link between nodes",
    Resource.HOST_LINK: "link to the host",
}


@dataclass(frozen=True)
class Side:
    """One schedule, or one run of which nothing but the trace is known."""

    name: str
    schedule: Schedule | None = None
    predicted: tuple[Timeline, ...] = ()
    """One for each load; where ranks are not alike, one for each kind of them."""
    measured: Measured | None = None
    program: Source | None = None
    """The emitted program."""
    extra: tuple[Source, ...] = field(default=())
    """Texts to show even if no step comes from them."""
    range: tuple[int, int] | None = None
    """Of one of several plans by load: the least and the most tokens that it is taken for."""


def loads_between(low: int, high: int) -> tuple[int, ...]:
    """Loads to simulate, from low to high by doubling, so that each is seen; at most eight, the highest ones."""
    found = [high]
    while found[-1] // 2 >= max(1, low) and len(found) < _MOST_LOADS:
        found.append(found[-1] // 2)
    if found[-1] > low and len(found) < _MOST_LOADS:
        found.append(low)
    return tuple(reversed(found))


def sides_data(sides: Sequence[Side]) -> list[dict[str, Any]]:
    return [_data(side) for side in sides]


def step_lines(program: str, most: int | None = None) -> dict[str, int]:
    """The line of an emitted program at which each step is issued: its `with LANE.step("KEY", ...)`. Of one with plans
    by load those of the plan for at most so many tokens."""
    found: dict[str, int] = {}
    tree = ast.parse(program)
    own = next((node for node in tree.body if most is not None and _most(node) == most), None)
    for node in ast.walk(own or tree):
        for item in node.items if isinstance(node, ast.With) else ():
            call = item.context_expr
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "step":
                first = call.args[0] if call.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.setdefault(first.value, call.lineno)
    return found


def _most(node: ast.stmt) -> int | None:
    """The most tokens of the plan that a class of an emitted program runs: `name, most = "decode", 64`."""
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) in ("name, most", "(name, most)"):
            return int(ast.literal_eval(each.value)[1])
    return None


def _data(side: Side) -> dict[str, Any]:
    if side.schedule is None:
        return _run_only(side)
    schedule = side.schedule
    sources = _sources(side)
    lines = step_lines(side.program.text, side.range[1] if side.range else None) if side.program else {}
    needs = makers_of(schedule)
    index = {step.key: i for i, step in enumerate(schedule.steps)}
    steps = [_step(schedule, step, sources, lines, needs[step.key], index) for step in schedule.steps]
    return {
        "name": side.name,
        "range": list(side.range) if side.range else None,
        "ep": schedule.ep,
        "plan": json.loads(plan_json(schedule)),
        "lanes": _lanes(schedule),
        "steps": steps,
        "graph": _graph(schedule),
        "sources": [{"name": source.name, "text": source.text} for source in sources],
        "program": {"name": side.program.name, "text": side.program.text} if side.program else None,
        "runs": [_run(timeline, schedule, index) for timeline in side.predicted],
        "measured": _measured(side.measured, index) if side.measured else [],
    }


def _run_only(side: Side) -> dict[str, Any]:
    """Of a trace alone: its steps in the order in which they ran on its first rank."""
    assert side.measured is not None
    events = {e.step: e for timeline in side.measured.ranks.values() for e in timeline.events}
    index = {key: i for i, key in enumerate(events)}
    steps = [
        {"key": e.step, "node": e.node, "look": look_of(e.role).key, "lane": e.lane, "chunk": e.chunk}
        | {"kind": "", "cut": "", "comm": "", "sms": 0, "impl": "", "reads": [], "writes": [], "waits": [], "needs": []}
        | {"source": None, "python": [], "code": None}
        for e in events.values()
    ]
    return {
        "name": side.name,
        "range": None,
        "ep": len(side.measured.ranks),
        "plan": None,
        "lanes": list(dict.fromkeys(e.lane for e in events.values())),
        "steps": steps,
        "graph": None,
        "sources": [],
        "program": None,
        "runs": [],
        "measured": _measured(side.measured, index),
    }


def _sources(side: Side) -> list[Source]:
    assert side.schedule is not None
    found = list(side.extra)
    for node in side.schedule.graph.nodes:
        if node.span and node.span.source not in found:
            found.append(node.span.source)
    return found


def _lanes(schedule: Schedule) -> list[str]:
    used = [step.lane for step in schedule.steps]
    return [name for name in dict.fromkeys([*(lane.name for lane in schedule.lanes), *used]) if name in used]


def _step(
    schedule: Schedule,
    step: Step,
    sources: list[Source],
    lines: dict[str, int],
    needs: tuple[str, ...],
    index: dict[str, int],
) -> dict[str, Any]:
    node = schedule.node(step)
    place = None
    if node.span:
        last = node.span.source.position(max(node.span.start, node.span.end - 1))[0]
        place = [sources.index(node.span.source), node.span.line, last]
    return {
        "key": step.key,
        "node": step.node,
        "kind": node.kind,
        "look": look_of_node(node).key,
        "lane": step.lane,
        "chunk": step.cuts[0].index if step.cuts else None,
        "cut": " and ".join(f"{cut.index + 1} of {cut.count} by {cut.axis}" for cut in step.cuts),
        "comm": step.comm,
        "sms": step.sms,
        "impl": str(step.impl),
        "reads": [str(ref) for ref in step.reads],
        "writes": [str(ref) for ref in step.writes],
        "waits": [[index[w.step], w.value, w.hazard.value, w.everywhere] for w in step.waits],
        "needs": [index[key] for key in needs],
        "source": place,
        "python": [[each.file, each.line, each.text] for each in node.places],
        "code": lines.get(step.key),
    }


def _graph(schedule: Schedule) -> dict[str, Any]:
    graph = schedule.graph
    drawn = layered(graph)
    nodes = []
    for name, place in drawn.places.items():
        node = graph.node.get(name)
        if node:
            told = {"kind": node.kind, "look": look_of_node(node).key}
        else:
            told = {"kind": "" if place.passing else str(graph.types[name.removeprefix("in:")]), "look": "input"}
        nodes.append({"name": name, "row": place.row, "column": place.column, "passing": place.passing} | told)
    lines = [[line.source, line.target, line.value, str(graph.types[line.value]), line.via] for line in drawn.lines]
    return {"nodes": nodes, "lines": lines, "results": list(graph.results)}


def _run(timeline: Timeline, schedule: Schedule | None, index: dict[str, int]) -> dict[str, Any]:
    if schedule:
        names = [(found.step, f"{found.why}: {found.words}") for found in exposures(timeline, schedule)]
    else:
        names = [(_moving(timeline, interval), "") for interval in timeline.exposed]
    taken = [_taken(event, schedule) if schedule and event.impl else [] for event in timeline.events]
    resources = sorted({name for names in taken for name in names}, key=_resource_order)
    return {
        "load": timeline.load,
        "ranks": ranks_words(timeline.ranks) if timeline.ranks else None,
        "headline": headline(timeline),
        "head": list(head_words(timeline)),
        "total": timeline.total,
        "exposed": [
            [start, end, index[step], why]
            for (start, end), (step, why) in zip(timeline.exposed, names, strict=True)
            if step in index
        ],
        "spent": [[what.value, seconds] for what, seconds in spent(timeline).items() if seconds > 0],
        "events": [
            _event(e, index, [resources.index(name) for name in names])
            for e, names in zip(timeline.events, taken, strict=True)
        ],
        "resources": resources,
        "partitions": sum(_is_partition(name) for name in resources),
        "critical": [index[step] for step in timeline.critical_path],
    }


def _event(event: Event, index: dict[str, int], taken: list[int]) -> list[Any]:
    return [
        index[event.step],
        round(event.start, 10),
        round(event.end, 10),
        index.get(event.after, -1),
        event.waited_for,
        event.impl,
        round(event.work.rows, 1),
        round(event.work.hbm_bytes),
        round(event.work.link_bytes),
        round(event.work.flops),
        round(event.slowed, 10),
        taken,
        round(event.start + event.waits, 10),
    ]


def _taken(event: Event, schedule: Schedule) -> list[str]:
    """The resources that a step holds while it runs, as the simulator gives them out."""
    impl = impls_of(schedule.graph.node[event.node].kind)[event.impl]
    if event.role in (Role.CONTROL, Role.HOST) or impl.cost.bound is Bound.LATENCY:
        return []
    found = []
    if Resource.SMS in impl.occupies:
        found.append(f"{event.sms} SMs · {event.lane}" if event.sms else _FREE)
    return found + [words for resource, words in _LINKS.items() if resource in impl.occupies]


def _resource_order(name: str) -> tuple[int, str]:
    """Partitions of the SMs, what takes SMs that are free, then what moves rows."""
    return (0 if _is_partition(name) else 1 if name == _FREE else 2), name


def _is_partition(name: str) -> bool:
    """SMs that are set apart: what waits for other ranks holds those, and nothing else."""
    return name != _FREE and name not in _LINKS.values()


def _moving(timeline: Timeline, interval: tuple[float, float]) -> str:
    start, end = interval
    moving = [e for e in timeline.events if e.role is Role.TRANSFER and e.start < end and e.end > start]
    return max(moving, key=lambda e: min(e.end, end) - max(e.start, start)).step


def _measured(found: Measured, index: dict[str, int]) -> list[dict[str, Any]]:
    runs = []
    for rank, timeline in found.ranks.items():
        # A trace does not say what held a step up: its exposed stretches get a name and no reason.
        run = _run(timeline, None, index)
        for_load, measured = f", {timeline.load} tokens per rank", ", measured"
        run["headline"] = headline(timeline).replace(for_load, measured, 1)
        run["head"][0] = run["head"][0].replace(for_load, measured, 1)
        runs.append({"rank": rank, "trace": f"{found.name}, {found.clocks}"} | run)
    return runs
