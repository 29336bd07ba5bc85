"""A dataflow graph in layers, for pictures: each op one row below the last of those that it reads.

A value that is read further down takes a narrow place in every row between, so that its line never runs behind a box.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from epsc.ir.graph import Graph

_SWEEPS = 8


@dataclass(frozen=True)
class Place:
    row: int
    column: int
    passing: bool = False
    """No op: a line goes through here."""


@dataclass(frozen=True)
class Line:
    source: str
    target: str
    value: str
    via: tuple[str, ...]
    """The places that it goes through, from top to bottom."""


@dataclass(frozen=True)
class Layered:
    places: dict[str, Place]
    """Of each input (as `in:NAME`), op, and place between."""
    lines: tuple[Line, ...]
    """One for each value that an op reads."""


def layered(graph: Graph) -> Layered:
    """Ops of one row lie near the middle of what they read and feed."""
    reads: dict[str, dict[str, str]] = {f"in:{name}": {} for name in graph.inputs}
    for node in graph.nodes:
        reads[node.name] = {value: _source(graph, value) for value in node.ins}
    rows: dict[str, int] = {}
    for name, sources in reads.items():
        rows[name] = max((rows[source] + 1 for source in sources.values()), default=0)
    lines = tuple(
        Line(source, name, value, tuple(f"via:{row}:{source}" for row in range(rows[source] + 1, rows[name])))
        for name, sources in reads.items()
        for value, source in sources.items()
    )
    ops = set(rows)
    rows |= {
        f"via:{row}:{line.source}": row for line in lines for row in range(rows[line.source] + 1, rows[line.target])
    }
    above: dict[str, list[str]] = {name: [] for name in rows}
    below: dict[str, list[str]] = {name: [] for name in rows}
    for line in lines:
        path = [line.source, *line.via, line.target]
        for one, other in pairwise(path):
            if one not in above[other]:
                above[other].append(one)
                below[one].append(other)
    columns = _columns(rows, above, below)
    return Layered({name: Place(row, columns[name], name not in ops) for name, row in rows.items()}, lines)


def _columns(rows: dict[str, int], above: dict[str, list[str]], below: dict[str, list[str]]) -> dict[str, int]:
    """Places in a row by the mean of their neighbours', row by row, down and up again."""
    ranks: list[list[str]] = [[] for _ in range(max(rows.values(), default=-1) + 1)]
    for name, row in rows.items():
        ranks[row].append(name)
    at = {name: column for rank in ranks for column, name in enumerate(rank)}
    for sweep in range(_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for rank in ranks if sweep % 2 == 0 else reversed(ranks):
            wish = {name: _mean([at[other] for other in near[name]], at[name]) for name in rank}
            rank.sort(key=lambda name: wish[name])
            at.update((name, column) for column, name in enumerate(rank))
    return at


def _source(graph: Graph, value: str) -> str:
    return graph.maker[value].name if value in graph.maker else f"in:{value}"


def _mean(numbers: list[int], otherwise: int) -> float:
    return sum(numbers) / len(numbers) if numbers else float(otherwise)
