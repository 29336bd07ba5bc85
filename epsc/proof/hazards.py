"""Data races: every two uses of one piece of memory, one of them a write, must be ordered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from epsc.ir.dims import Cuts
from epsc.ir.errors import Faults, Note
from epsc.ir.regions import Regions
from epsc.ir.schedule import Hazard, Schedule, Stage, Step
from epsc.proof.happens import Happens


@dataclass(frozen=True)
class Use:
    """One use of memory: `place` is the value, or the storage once there are buffers."""

    number: int
    """In the order of issue."""
    step: Step
    value: str
    cuts: Cuts
    writes: bool
    buffer: Cuts
    """The cuts of the buffer that holds it: () for one of the whole value."""

    @property
    def whole(self) -> bool:
        """Whether it uses all of its buffer."""
        return self.cuts == self.buffer


class _Uses:
    """The reads, or the writes, of one buffer so far."""

    def __init__(self) -> None:
        self._regions: Regions[Use] = Regions()
        self._last: dict[str, Step] = {}

    def add(self, use: Use) -> None:
        self._regions.add(use.cuts, use)
        self._last[use.step.lane] = use.step

    def before(self, step: Step, happens: Happens) -> bool:
        """Whether all are certainly finished when `step` starts: they are if the last one of each lane is."""
        return all(happens.before(last.key, step.key) for last in self._last.values())

    def meeting(self, cuts: Cuts) -> list[Use]:
        return self._regions.meeting(cuts)


class _Memory:
    """The uses of one place, since a write that replaced what was there."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Cuts], tuple[_Uses, _Uses]] = {}
        """Reads and writes of each buffer, by its value and cuts."""

    def add(self, use: Use) -> None:
        self._buffers.setdefault((use.value, use.buffer), (_Uses(), _Uses()))[use.writes].add(use)

    def before(self, step: Step, happens: Happens) -> bool:
        """Whether every use is certainly finished when `step` starts."""
        return all(uses.before(step, happens) for both in self._buffers.values() for uses in both)

    def clear(self) -> None:
        self._buffers.clear()

    def races(self, use: Use, happens: Happens) -> Iterator[Use]:
        """The uses that conflict with `use` and may not be finished when it starts, in issue order."""
        found: list[Use] = []
        for buffer, (reads, writes) in self._buffers.items():
            one_buffer = buffer == (use.value, use.buffer)
            for uses in (reads, writes) if use.writes else (writes,):
                if not uses.before(use.step, happens):
                    found += uses.meeting(use.cuts if one_buffer else ())
        for other in sorted(found, key=lambda found: found.number):
            if other.step is not use.step and not happens.before(other.step.key, use.step.key):
                yield other


def check_hazards(schedule: Schedule, happens: Happens, faults: Faults) -> None:
    """Check every pair of conflicting uses, in issue order.

    Uses of one buffer conflict where their regions overlap; uses of different buffers that share a storage always do,
    be they buffers of one value or of two.
    Linear for values written once: a write of a whole buffer that comes after all uses before it replaces them.
    """
    for wait_step in schedule.steps:
        for wait in wait_step.waits:
            if wait.step not in happens or not happens.before(wait.step, wait_step.key):
                faults.add(
                    "late-wait",
                    f"`{wait_step.key}` waits for `{wait.step}`, not issued before it: the wait would not hold",
                    schedule.node(wait_step).span,
                )
    place_of = _places(schedule)
    live: dict[str, _Memory] = {}
    numbers = count()
    for step in schedule.steps:
        fresh: list[tuple[str, Use]] = []
        for ref, writes in [*((r, False) for r in step.reads), *((w, True) for w in step.writes)]:
            place, buffer_cuts = place_of(ref.value, ref.cuts)
            use = Use(next(numbers), step, ref.value, ref.cuts, writes, buffer_cuts)
            if place in live:
                for other in live[place].races(use, happens):
                    _report(schedule, other, use, place, faults)
            fresh.append((place, use))
        for place, use in fresh:
            memory = live.setdefault(place, _Memory())
            if use.writes and use.whole and memory.before(step, happens):
                # Whatever comes after this write and before the next came after all of these too.
                memory.clear()
            memory.add(use)


def _places(schedule: Schedule) -> Callable[[str, Cuts], tuple[str, Cuts]]:
    """A function from (value, cuts) to the memory behind it and the cuts of its buffer."""
    if schedule.stage < Stage.BUFFERED:
        return lambda value, _cuts: (value, ())
    buffers: dict[tuple[str, Cuts], tuple[int, str]] = {}
    for i, buffer in enumerate(schedule.buffers):
        buffers.setdefault((buffer.value, buffer.cuts), (i, buffer.storage))

    def place(value: str, cuts: Cuts) -> tuple[str, Cuts]:
        found = [(*buffers[value, c], c) for c in {(), cuts} if (value, c) in buffers]
        if not found:
            return value, ()
        _, storage, buffer_cuts = min(found)  # the first that the schedule names
        return storage, buffer_cuts

    return place


def _report(schedule: Schedule, first: Use, then: Use, place: str, faults: Faults) -> None:
    hazard = (Hazard.WAW if first.writes else Hazard.WAR) if then.writes else Hazard.RAW
    what = {
        Hazard.RAW: f"reads `{then.value}` while `{first.step.key}` may still be writing it",
        Hazard.WAR: f"overwrites what `{first.step.key}` may still be reading (`{first.value}`)",
        Hazard.WAW: f"and `{first.step.key}` may both be writing `{then.value}`",
    }[hazard]
    shared = f" in storage {place}" if first.value != then.value else ""
    faults.add(
        "race",
        f"`{then.step.key}` on {then.step.lane} {what}{shared}: nothing orders it after {first.step.lane}",
        schedule.node(then.step).span,
        notes=[Note(f"`{first.step.key}` is made here", schedule.node(first.step).span)],
        help=f"make `{then.step.key}` wait for `{first.step.key}`",
    )
