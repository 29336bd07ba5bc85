"""Data races: every two uses of one piece of memory, one of them a write, must be ordered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epsc.ir.dims import Cuts, overlap
from epsc.ir.errors import Faults, Note
from epsc.ir.schedule import Hazard, Schedule, Stage, Step
from epsc.proof.happens import Happens


@dataclass(frozen=True)
class Use:
    """One use of memory: `place` is the value, or the storage once there are buffers."""

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
    live: dict[str, list[Use]] = {}
    for step in schedule.steps:
        fresh: list[tuple[str, Use]] = []
        for ref, writes in [*((r, False) for r in step.reads), *((w, True) for w in step.writes)]:
            place, buffer_cuts = place_of(ref.value, ref.cuts)
            use = Use(step, ref.value, ref.cuts, writes, buffer_cuts)
            for other in live.get(place, ()):
                if other.step is step or not (writes or other.writes):
                    continue
                one_buffer = other.value == use.value and other.buffer == use.buffer
                if one_buffer and not overlap(other.cuts, use.cuts):
                    continue
                if not happens.before(other.step.key, step.key):
                    _report(schedule, other, use, place, faults)
            fresh.append((place, use))
        for place, use in fresh:
            uses = live.setdefault(place, [])
            if use.writes and use.whole and all(happens.before(o.step.key, step.key) for o in uses):
                # Whatever comes after this write and before the next came after all of these too.
                uses.clear()
            uses.append(use)


def _places(schedule: Schedule) -> Callable[[str, Cuts], tuple[str, Cuts]]:
    """A function from (value, cuts) to the memory behind it and the cuts of its buffer."""
    if schedule.stage < Stage.BUFFERED:
        return lambda value, _cuts: (value, ())
    by_value: dict[str, list[tuple[Cuts, str]]] = {}
    for buffer in schedule.buffers:
        by_value.setdefault(buffer.value, []).append((buffer.cuts, buffer.storage))

    def place(value: str, cuts: Cuts) -> tuple[str, Cuts]:
        for buffer_cuts, storage in by_value.get(value, ()):
            if buffer_cuts in ((), cuts):
                return storage, buffer_cuts
        return value, ()

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
