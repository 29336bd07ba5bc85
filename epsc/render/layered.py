"""A dataflow graph in layers, for pictures: each op one row below the last of those that it reads."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.graph import Graph

_SWEEPS = 8


@dataclass(frozen=True)
class Place:
    row: int
    column: int


def layered(graph: Graph) -> dict[str, Place]:
    """A place for each input (as `in:NAME`) and op. Ops of one row lie near the middle of what they read and feed."""
    above: dict[str, list[str]] = {f"in:{name}": [] for name in graph.inputs}
    for node in graph.nodes:
        above[node.name] = list(dict.fromkeys(_source(graph, value) for value in node.ins))
    rows: dict[str, int] = {}
    for name, sources in above.items():
        rows[name] = max((rows[source] + 1 for source in sources), default=0)
    below: dict[str, list[str]] = {name: [] for name in above}
    for name, sources in above.items():
        for source in sources:
            below[source].append(name)
    lines: list[list[str]] = [[] for _ in range(max(rows.values(), default=-1) + 1)]
    for name, row in rows.items():
        lines[row].append(name)
    for sweep in range(_SWEEPS):
        near = above if sweep % 2 == 0 else below
        at = {name: column for line in lines for column, name in enumerate(line)}
        for line in lines if sweep % 2 == 0 else reversed(lines):
            wish = {name: _mean([at[other] for other in near[name]], at[name]) for name in line}
            line.sort(key=lambda name: wish[name])
            at.update((name, column) for column, name in enumerate(line))
    return {name: Place(row, column) for row, line in enumerate(lines) for column, name in enumerate(line)}


def edges(graph: Graph) -> list[tuple[str, str, str]]:
    """(from, to, value) for each value that an op reads."""
    return [(_source(graph, value), node.name, value) for node in graph.nodes for value in dict.fromkeys(node.ins)]


def _source(graph: Graph, value: str) -> str:
    return graph.maker[value].name if value in graph.maker else f"in:{value}"


def _mean(numbers: list[int], otherwise: int) -> float:
    return sum(numbers) / len(numbers) if numbers else float(otherwise)
