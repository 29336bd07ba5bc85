"""Graphs and Schedules as Graphviz text: `dot -Tsvg`."""

from __future__ import annotations

from itertools import pairwise

from epsc.ir.graph import Graph
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule

_COLOURS = {
    Role.COMPUTE: "#8fb3e0",
    Role.MEMORY: "#a8d5d0",
    Role.TRANSFER: "#f2c879",
    Role.CONTROL: "#dddddd",
    Role.HOST: "#d8b4dd",
}
_STYLE = 'node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10]'
_EDGES = 'edge [fontname="Helvetica", fontsize=8]'


def graph_dot(graph: Graph) -> str:
    """Ops as boxes, coloured by what they occupy; values as edges with their types."""
    lines = [f"digraph {quoted(graph.name)} {{", f"  {_STYLE}", f"  {_EDGES}"]
    for value in graph.inputs:
        label = f"{value}\n{graph.types[value]}"
        lines.append(f"  {quoted(f'in:{value}')} [label={quoted(label)}, shape=plain]")
    for node in graph.nodes:
        label = "\n".join([node.name, node.kind, *node.params])
        lines.append(f"  {quoted(node.name)} [label={quoted(label)}, fillcolor={quoted(_COLOURS[node.info.role])}]")
    for node in graph.nodes:
        for value in dict.fromkeys(node.ins):
            source = graph.maker[value].name if value in graph.maker else f"in:{value}"
            label = f"{value}\n{graph.types[value]}"
            lines.append(f"  {quoted(source)} -> {quoted(node.name)} [label={quoted(label)}]")
    for value in graph.results:
        lines.append(f"  {quoted(f'out:{value}')} [label={quoted(value)}, shape=plain]")
        source = graph.maker[value].name if value in graph.maker else f"in:{value}"
        lines.append(f"  {quoted(source)} -> {quoted(f'out:{value}')}")
    return "\n".join([*lines, "}"])


def schedule_dot(schedule: Schedule) -> str:
    """Lanes as columns of steps in program order; waits between lanes as dashed edges that say why."""
    lines = [f"digraph {quoted(schedule.name)} {{", f"  {_STYLE}", f"  {_EDGES}"]
    lanes: dict[str, list[str]] = {}
    for step in schedule.steps:
        lanes.setdefault(step.lane, []).append(step.key)
    for number, (lane, keys) in enumerate(lanes.items()):
        lines += [f"  subgraph cluster_{number} {{", f"    label={quoted(lane or 'no lane yet')}"]
        for key in keys:
            step = schedule.step[key]
            limit = f"{step.sms} SMs" if step.sms else ""
            label = "\n".join(filter(None, [key, str(step.impl), limit]))
            colour = quoted(_COLOURS[schedule.node(step).info.role])
            lines.append(f"    {quoted(key)} [label={quoted(label)}, fillcolor={colour}]")
        if lane:
            lines += [f"    {quoted(a)} -> {quoted(b)} [color=gray, weight=10]" for a, b in pairwise(keys)]
        lines.append("  }")
    for step in schedule.steps:
        for wait in step.waits:
            why = quoted(f"{wait.value} {wait.hazard}")
            lines.append(f"  {quoted(wait.step)} -> {quoted(step.key)} [label={why}, style=dashed, constraint=false]")
    return "\n".join([*lines, "}"])


def quoted(text: str) -> str:
    """A Graphviz string: quotes and backslashes escaped, line breaks kept."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
