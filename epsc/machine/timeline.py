"""Timeline: when each step of a Schedule runs, and what it waited for. Made by the simulator or from a measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from epsc.ir.attrs import Direction
from epsc.ir.kinds import Role
from epsc.machine.work import Work

Interval = tuple[float, float]


@dataclass(frozen=True)
class Event:
    """One step as it ran, in seconds from the start of the layer."""

    step: str
    node: str
    lane: str
    role: Role
    start: float
    end: float
    after: str = ""
    """The step whose end let this one start; empty if nothing but the host held it."""
    waited_for: str = ""
    """Why it did not start earlier, in words."""
    chunk: int | None = None
    """The index of its first cut."""
    direction: Direction | None = None
    """Of a transfer: to the experts or back."""
    sms: int = 0
    impl: str = ""
    work: Work = Work()
    alone: float | None = None
    """Seconds that it would take with nothing beside it, where that is known."""
    met: float | None = None
    """Of a collective: when the last rank came, and it began to move, where that is known."""

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def waits(self) -> float:
        """Seconds of it in which nothing moves, because other ranks have not come."""
        return 0.0 if self.met is None else self.met - self.start

    @property
    def slowed(self) -> float:
        """Seconds that it takes longer because of what runs beside it."""
        return 0.0 if self.alone is None else self.seconds - self.alone


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as disjoint intervals, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return merged


def without(intervals: list[Interval], others: list[Interval]) -> list[Interval]:
    """The times of `intervals` that are not in `others`; both disjoint and in order."""
    left: list[Interval] = []
    for start, end in intervals:
        for other_start, other_end in others:
            if other_end <= start or other_start >= end:
                continue
            if other_start > start:
                left.append((start, other_start))
            start = max(start, other_end)
        if start < end:
            left.append((start, end))
    return left


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


@dataclass(frozen=True)
class Timeline:
    """Events in the order in which they start. Times in seconds."""

    name: str
    load: int
    """Tokens per rank."""
    lanes: tuple[str, ...]
    events: tuple[Event, ...]
    host_busy: float = 0.0
    """Time that the host spent issuing."""
    ranks: tuple[int, ...] = ()
    """The ranks that it is of, where not all are alike."""
    share: float = 1.0
    """Rows that come to each of them, over the mean of all ranks."""

    @cached_property
    def event(self) -> dict[str, Event]:
        return {event.step: event for event in self.events}

    @cached_property
    def total(self) -> float:
        return max((event.end for event in self.events), default=0.0)

    @cached_property
    def transfers(self) -> list[Interval]:
        """When a transfer runs."""
        return union((e.start, e.end) for e in self.events if e.role is Role.TRANSFER)

    @cached_property
    def compute(self) -> list[Interval]:
        """When a step runs that does the layer's work on the device: GEMMs and memory-bound ops, not routing."""
        return union((e.start, e.end) for e in self.events if e.role in (Role.COMPUTE, Role.MEMORY))

    @cached_property
    def exposed(self) -> list[Interval]:
        """When a transfer runs and no compute does: what overlap has not hidden."""
        return without(self.transfers, self.compute)

    @cached_property
    def exposed_transfer(self) -> float:
        return length(self.exposed)

    @cached_property
    def slowed(self) -> float:
        """Time that compute lost to transfers and to other compute beside it."""
        return sum(e.slowed for e in self.events if e.role in (Role.COMPUTE, Role.MEMORY))

    @cached_property
    def hidden(self) -> float:
        """The share of transfer time that costs nothing: neither exposed, nor paid for by compute that is slower beside
        it. 1 if there is no transfer; below 0 if one after the other would have been better."""
        alone = sum(e.seconds - e.slowed for e in self.events if e.role is Role.TRANSFER)
        # Rounded: sums of the same times in another order differ by dust, which would print as -0%.
        return round(1 - (self.exposed_transfer + self.slowed) / alone, 9) + 0.0 if alone else 1.0

    @cached_property
    def critical_path(self) -> tuple[str, ...]:
        """Steps each of which held up the next, up to the one that ends last."""
        if not self.events:
            return ()
        path = [max(self.events, key=lambda e: (e.end, e.start))]
        while path[-1].after:
            path.append(self.event[path[-1].after])
        return tuple(event.step for event in reversed(path))
