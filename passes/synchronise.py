"""synchronise: the waits that data flow between lanes needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.dims import overlap
from epsc.ir.schedule import Hazard, Ref, Schedule, Stage, Step, Wait
from epsc.passes.wishes import Context
from epsc.proof.happens import Happens


@dataclass(frozen=True)
class Synchronise:
    """Derive waits: for every two uses of a value on two lanes, one of them a write, the later waits for the earlier.

    Not when lanes, the host or another wait guarantee it already: every wait left is one that a race needs.
    """

    name: ClassVar[str] = "synchronise"

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:  # noqa: ARG002 - every pass is called alike
        happens = Happens([lane.name for lane in schedule.lanes])
        used: dict[str, list[tuple[int, Step, Ref, bool]]] = {}
        steps = []
        for i, step in enumerate(schedule.steps):
            needs: dict[int, Wait] = {}
            for ref, writes in [*((r, False) for r in step.reads), *((w, True) for w in step.writes)]:
                for j, other, theirs, wrote in used.get(ref.value, ()):
                    if (writes or wrote) and j not in needs and overlap(ref.cuts, theirs.cuts):
                        hazard = (Hazard.WAW if wrote else Hazard.WAR) if writes else Hazard.RAW
                        needs[j] = Wait(other.key, ref.value, hazard)
            clock = happens.base(step)
            waits = []
            # The latest first: what it guarantees need not be waited for again.
            for j in sorted(needs, reverse=True):
                if not happens.reached(clock, needs[j].step):
                    clock = happens.joined(clock, needs[j].step)
                    waits.append(needs[j])
            synced = replace(step, waits=tuple(waits))
            happens.add(synced, [wait.step for wait in waits])
            for ref in step.reads:
                used.setdefault(ref.value, []).append((i, synced, ref, False))
            for ref in step.writes:
                used.setdefault(ref.value, []).append((i, synced, ref, True))
            steps.append(synced)
        return replace(schedule, stage=Stage.SYNCED, steps=tuple(steps))
