"""Measured rates and how to read between them.

A table belongs to an implementation of an op kind (`expert_gemm` by `grouped`). Its points have coordinates, such as
rows per expert, and what was measured there. What is interpolated is not the rate itself but the *ratio* of the time
measured to the time of a roofline at the same point (see `epsc.machine.roofline`), because that varies slowly:

1. points that differ in the first coordinate only form a curve, linear in log(coordinate) between points, and held at
   the end's ratio outside: beyond what was measured a step costs its roofline times the ratio of the nearest point;
2. curves are averaged (in the log), each weighted by 1 / distance^4, where distance is counted in octaves of the other
   coordinates, and beyond the ends of a curve of the first as well. A curve at the very place counts alone. Amounts,
   such as experts, are no distance: how many there are changes the roofline, and how near to it a product gets only a
   little. Points that differ in nothing else are averaged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, log, log2
from statistics import fmean

COORDINATES = {
    "experts": "experts that the step works for",
    "rows": "rows per expert, or rows of a product without experts",
    "out": "columns that a product makes",
    "in": "columns that a product reads",
    "mb": "megabytes (10^6): sent to other ranks by a transfer, read and written by anything else",
    "moved": "megabytes of memory that a one-sided transfer by SMs reads and writes",
    "turns": "rows, or pieces of rows, that the programs of a one-sided transfer by SMs take one after the other",
    "sms": "SMs that the step may use",
    "ranks": "ranks that share the experts",
}
VALUES = {"tflops": 1e12, "gb_per_s": 1e9, "us": 1e-6}
"""What the last column of a table may be, and its unit: FLOP/s, bytes/s or seconds."""
_AMOUNTS = ("experts", "moved", "turns")
"""Coordinates that are no distance: they change the roofline, and how near to it a step gets only a little."""

Point = Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """What was measured of one implementation of an op kind, or of several kinds that it serves alike."""

    kinds: tuple[str, ...]
    impl: str
    columns: tuple[str, ...]
    """Coordinates, the one to interpolate along first; the value last."""
    points: tuple[tuple[float, ...], ...]
    origin: str
    measured: bool
    element: int = 2
    """Bytes of an element of the rows in the measurement."""
    floor_s: float | None = None
    """Of a transfer: what it costs when it moves nothing; else that of any transfer."""
    turn_s: float = 0.0
    """Of a one-sided transfer by SMs: what a program needs for a row, or a piece of one, however short."""

    @property
    def value(self) -> str:
        return self.columns[-1]

    def at(self, point: tuple[float, ...]) -> dict[str, float]:
        """The coordinates of a point."""
        return {"element": self.element, **dict(zip(self.columns[:-1], point[:-1], strict=True))}

    def seconds(self, point: tuple[float, ...]) -> float:
        """The time that was measured at a point."""
        at, value = self.at(point), point[-1] * VALUES[self.value]
        if self.value == "us":
            return value
        if self.value == "gb_per_s":
            return at["mb"] * 1e6 / value
        return 2 * at.get("experts", 1) * at["rows"] * at["out"] * at["in"] / value


@dataclass(frozen=True)
class Ratios:
    """Positive numbers at points of a table, to be read anywhere."""

    table: Table
    numbers: tuple[float, ...]
    """One for each point."""

    @cached_property
    def _others(self) -> tuple[str, ...]:
        """The coordinates that tell one curve from another."""
        return tuple(name for name in self.table.columns[1:-1] if name not in _AMOUNTS)

    @cached_property
    def _curves(self) -> dict[tuple[float, ...], tuple[list[float], list[float]]]:
        """Where a curve lies in the other coordinates -> its octaves along the first, and the logs of its numbers."""
        found: dict[tuple[float, ...], dict[float, list[float]]] = {}
        for point, number in zip(self.table.points, self.numbers, strict=True):
            at = self.table.at(point)
            place = tuple(_octave(at[name]) for name in self._others)
            found.setdefault(place, {}).setdefault(_octave(point[0]), []).append(log(number))
        return {place: (sorted(c), [fmean(c[x]) for x in sorted(c)]) for place, c in found.items()}

    def read(self, at: Point) -> float:
        """The number at a place. Coordinates that `at` does not have count for nothing."""
        first, others = self.table.columns[0], self._others
        x = _octave(at.get(first, 1))
        total = weights = 0.0
        for place, (xs, ys) in self._curves.items():
            off = [_octave(at[name]) - where for name, where in zip(others, place, strict=True) if name in at]
            # Outside its ends a curve says less: count how far.
            beyond = max(xs[0] - x, x - xs[-1], 0.0)
            square = sum(d * d for d in off) + beyond * beyond
            y = _between(x, xs, ys)
            if square < 1e-12:
                return exp(y)
            weight = 1 / (square * square)
            total += weight * y
            weights += weight
        return exp(total / weights)


def _octave(number: float) -> float:
    return log2(max(number, 2.0**-20))


def _between(x: float, xs: list[float], ys: list[float]) -> float:
    """Linear between points, constant outside."""
    right = bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


@dataclass(frozen=True)
class Beside:
    """How much of a transfer a product hides when both run at the same time, by the SMs that the product may use.

    hidden = (transfer alone + product alone - both together) / the shorter of the two: 1 if the shorter costs nothing,
    0 if one might as well run after the other, negative if running both is worse than that.
    """

    transfer: str
    compute: str
    """An implementation of products, or `*` for any that has no entry of its own."""
    points: tuple[tuple[float, float], ...]
    """(SMs of the product, hidden), by SMs."""
    origin: str
    measured: bool

    def pace(self, sms: float) -> float:
        """The rate of each of the two while both run, 1 being its rate alone: 1 / (2 - hidden).

        If both slow down to a share r, the shorter of a <= b takes a/r, in which the other does r * a/r of its own, so
        together they take a/r + b - a, and hidden = 2 - 1/r. (That both slow down alike is an assumption.)
        """
        xs, ys = [x for x, _ in self.points], [y for _, y in self.points]
        return 1 / (2 - _between(sms, xs, ys))
