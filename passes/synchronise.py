"""synchronise: the waits that data flow between lanes needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.regions import Regions
from epsc.ir.schedule import Hazard, Schedule, Stage, Wait
from epsc.passes.questions import slot_before
from epsc.passes.wishes import Context
from epsc.proof.happens import Happens


@dataclass(frozen=True)
class Synchronise:
    """Derive waits: for every two uses of a value on two lanes, one of them a write, the later waits for the earlier.

    A weight that comes into a slot waits for the uses of the one that it replaces. Not when lanes, the host or another
    wait guarantee it already: every wait left is one that a race needs. What other ranks write here as well is waited
    for everywhere.
    """

    name: ClassVar[str] = "synchronise"

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:  # noqa: ARG002 - every pass is called alike
        happens = Happens([lane.name for lane in schedule.lanes])
        # Apart, because reads do not conflict: an index that every chunk reads is one use for each, not one for all.
        read: dict[str, Regions[tuple[int, str]]] = {}
        written: dict[str, Regions[tuple[int, str]]] = {}
        steps = []
        for i, step in enumerate(schedule.steps):
            needs: dict[int, Wait] = {}
            signals: dict[int, Wait] = {}
            for ref, earlier, hazard in (
                *((r, written, Hazard.RAW) for r in step.reads),
                *((w, *other) for w in step.writes for other in ((read, Hazard.WAR), (written, Hazard.WAW))),
            ):
                if ref.value in earlier:
                    for j, key in earlier[ref.value].meeting(ref.cuts):
                        needs.setdefault(j, Wait(key, ref.value, hazard))
                        if hazard is Hazard.RAW and schedule.graph.maker[ref.value].info.one_sided:
                            signals.setdefault(j, Wait(key, ref.value, hazard, everywhere=True))
            for before in filter(None, (slot_before(schedule.graph, ref) for ref in step.writes)):
                for earlier, hazard in ((read, Hazard.WAR), (written, Hazard.WAW)):
                    for j, key in earlier[before.value].meeting(before.cuts):
                        needs.setdefault(j, Wait(key, before.value, hazard))
            clock, heard = happens.base(step), happens.heard_before(step)
            waits = []
            # The latest first: what it guarantees need not be waited for again.
            for j in sorted(needs, reverse=True):
                # Other ranks write here too: of them the order of this rank says nothing.
                wait, known = (signals[j], heard) if j in signals else (needs[j], clock)
                if not happens.reached(known, wait.step):
                    clock = happens.joined(clock, wait.step)
                    heard = happens.heard_with(heard, wait.step, wait.everywhere)
                    waits.append(wait)
            synced = replace(step, waits=tuple(waits))
            happens.add(synced, [wait.step for wait in waits], [wait.step for wait in waits if wait.everywhere])
            for ref in step.reads:
                read.setdefault(ref.value, Regions()).add(ref.cuts, (i, step.key))
            for ref in step.writes:
                written.setdefault(ref.value, Regions()).add(ref.cuts, (i, step.key))
            steps.append(synced)
        return replace(schedule, stage=Stage.SYNCED, steps=tuple(steps))
