"""degree: FSMoE's choice of the number of pieces, in closed form, where `auto` simulates each.

The time of an op on one of r pieces is alpha + beta/r. Three resources take turns: between nodes (all2alls, all
dispatches before any combine), within nodes (gather, scatter), and experts. No plan of r pieces is faster than any of

    2r a                    transfers between nodes, one after the other
    (r + 1) a + g + e + s   all dispatches, then what the last piece goes through
    2a + g + s + r e        experts, between the first dispatch and the last combine
    2a + r (g + s)          transfers within nodes, likewise

and the slowest of the four is what binds. Each is c + c1 r + c2/r, so the best r is where one of them is least, or
where two of them meet. What is left out: the ops around these, and the host that issues them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import ceil, floor, sqrt

from epsc.ir.dims import Dim
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule
from epsc.machine.cluster import Cluster
from epsc.machine.cost import cost


@dataclass(frozen=True)
class Affine:
    """Seconds of an op on a share of the rows: what it takes whatever they are, and what all of them take more."""

    alpha: float
    beta: float

    def at(self, pieces: int) -> float:
        return self.alpha + self.beta / pieces

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.alpha + other.alpha, self.beta + other.beta)


@dataclass(frozen=True)
class Pipeline:
    """The ops of one layer."""

    all2all: Affine
    gather: Affine
    experts: Affine
    scatter: Affine

    def seconds(self, pieces: int) -> float:
        """The slowest of the four."""
        return max(c + c1 * pieces + c2 / pieces for c, c1, c2 in self._bounds())

    def degree(self, most: int) -> int:
        """The number of pieces, of at most so many, that is fastest; of equals the smallest."""
        tried = {1, most}
        for at in self._extremes():
            inside = min(float(most), max(1.0, at))
            tried |= {floor(inside), ceil(inside)}
        return min(sorted(tried), key=self.seconds)

    def _bounds(self) -> list[tuple[float, float, float]]:
        """c, c1 and c2 of each of the four."""
        a, g, e, s = self.all2all, self.gather, self.experts, self.scatter
        chain = g + e + s
        return [
            (2 * a.beta, 2 * a.alpha, 0.0),
            (a.alpha + a.beta + chain.alpha, a.alpha, a.beta + chain.beta),
            (2 * a.alpha + (g + s).alpha + e.beta, e.alpha, 2 * a.beta + (g + s).beta),
            (2 * a.alpha + (g + s).beta, (g + s).alpha, 2 * a.beta),
        ]

    def _extremes(self) -> Iterator[float]:
        """Where one of the four is least, or two are equal."""
        bounds = self._bounds()
        for _, c1, c2 in bounds:
            if c1 > 0:
                yield sqrt(c2 / c1)
        for one, other in combinations(bounds, 2):
            c, c1, c2 = (x - y for x, y in zip(one, other, strict=True))
            under = c * c - 4 * c1 * c2
            if c1 and under >= 0:
                yield from ((-c + sign * sqrt(under)) / (2 * c1) for sign in (1, -1))
            elif not c1 and c:
                yield -c2 / c


def pipeline_of(schedule: Schedule, cluster: Cluster, load: int) -> Pipeline:
    """What the ops of a schedule that cuts nothing take at a load and at half of it, as lines through both.

    Raises EpsError for a schedule that is cut, or that has no all2all.
    """
    if any(step.cuts for step in schedule.steps):
        raise EpsError(
            Diagnostic("degree", f"`{schedule.name}` is cut already: the choice is of how to cut a whole one")
        )
    found: dict[str, list[Affine]] = {"all2all": [], "all_gather_rows": [], "reduce_scatter_rows": [], "experts": []}
    for step in schedule.steps:
        node = schedule.node(step)
        rows = schedule.graph.types[node.outs[0]].shape[0]
        kind = "experts" if _at_experts(rows) and node.info.role is not Role.TRANSFER else node.kind
        if kind in found and node.info.role is not Role.CONTROL:
            all_of_them, half = (cost(schedule, step, cluster, n) for n in (load, load // 2))
            beta = max(0.0, all_of_them - half) * load / max(1, load - load // 2)
            found[kind].append(Affine(all_of_them - beta, beta))
    moves = found["all2all"]
    if not moves:
        raise EpsError(Diagnostic("degree", f"`{schedule.name}` has no all2all that pieces could hide"))
    mean = Affine(sum(m.alpha for m in moves) / len(moves), sum(m.beta for m in moves) / len(moves))
    none = Affine(0.0, 0.0)
    return Pipeline(
        mean,
        sum(found["all_gather_rows"], none),
        sum(found["experts"], none),
        sum(found["reduce_scatter_rows"], none),
    )


def _at_experts(rows: Dim) -> bool:
    return rows.symbol.startswith("rows(")
