"""Regions of one value, found by where they lie: what `overlap` says of every pair, without asking every pair."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Generic, TypeVar

from epsc.ir.dims import Axis, Cut, Cuts, overlap

T = TypeVar("T")
_Found = tuple[int, T]
"""A thing, after its place in the order in which things were added."""


class Regions(Generic[T]):
    """Things that each have a region of one value. `meeting(cuts)` is exactly, in the order in which they were added,

        [thing for region, thing in added if overlap(region, cuts)]

    but takes time for what it finds, not for what is there: N chunks that each ask for their own part ask N times for
    one thing. Only regions with cuts of several axes are compared one by one.
    """

    def __init__(self) -> None:
        self._all: list[tuple[Cuts, T]] = []
        self._whole: list[_Found[T]] = []
        self._parts: dict[tuple[Axis, int], dict[int, list[_Found[T]]]] = {}
        """Regions of a single cut: by its axis and count, then by its index."""
        self._mixed: list[_Found[T]] = []

    def __iter__(self) -> Iterator[T]:
        return (thing for _, thing in self._all)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, cuts: Cuts, thing: T) -> None:
        found = len(self._all), thing
        self._all.append((cuts, thing))
        if not cuts:
            self._whole.append(found)
        elif len(cuts) == 1:
            parts = self._parts.setdefault((cuts[0].axis, cuts[0].count), {})
            parts.setdefault(cuts[0].index, []).append(found)
        else:
            self._mixed.append(found)

    def meeting(self, cuts: Cuts) -> list[T]:
        """The things whose regions share elements with the region `cuts`."""
        if not cuts:
            return list(self)
        if len(cuts) != 1:
            return [thing for region, thing in self._all if overlap(region, cuts)]
        found = list(self._whole)
        for (axis, count), parts in self._parts.items():
            for index in _indices(cuts[0], axis, count, parts):
                found += parts.get(index, ())
        found += [(i, thing) for i, thing in self._mixed if overlap(self._all[i][0], cuts)]
        # By place alone: things need not compare.
        return [thing for _, thing in sorted(found, key=itemgetter(0))]


def _indices(cut: Cut, axis: Axis, count: int, parts: dict[int, list[_Found[T]]]) -> range | list[int]:
    """Which parts of `count` equal ones of an axis share elements with `cut`; it may name some that are not there."""
    if axis is not cut.axis:
        return list(parts)
    # Part j meets [index/n, (index+1)/n) if (j+1)/count > index/n and j/count < (index+1)/n.
    first = cut.index * count // cut.count
    last = ((cut.index + 1) * count - 1) // cut.count
    if last - first < len(parts):
        return range(first, last + 1)
    return [j for j in parts if first <= j <= last]
