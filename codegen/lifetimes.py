"""Lifetimes: which results that a step made itself can be given back before the forward ends."""

from __future__ import annotations

from epsc.codegen.regions import Regions
from epsc.ir.schedule import Ref, Schedule

OWN_RESULTS = frozenset({"expert_gemm", "call"})
"""Kinds whose ops may make a tensor of their own instead of filling a buffer."""


def last_uses(schedule: Schedule, regions: Regions) -> dict[int, list[str]]:
    """Step number -> variables that nobody uses after it, if their memory may be reused from there on.

    Memory that is given back goes to whatever its lane allocates next, with no regard to other lanes. So a result may
    go early only if its maker and all its readers are on one lane; the others stay until all lanes have joined.
    """
    made: dict[Ref, int] = {}
    lanes: dict[Ref, set[str]] = {}
    last: dict[Ref, int] = {}
    for i, step in enumerate(schedule.steps):
        for ref in step.reads:
            for own in (ref, Ref(ref.value)):
                if own in made:
                    last[own] = i
                    lanes[own].add(step.lane)
        if schedule.node(step).kind in OWN_RESULTS:
            for ref in step.writes:
                if regions.whole(ref):
                    made[ref] = i
                    lanes[ref] = {step.lane}
    found: dict[int, list[str]] = {}
    for ref, i in last.items():
        if len(lanes[ref]) == 1 and ref.value not in schedule.graph.results:
            found.setdefault(i, []).append(regions.chunk(ref.value, ref.cuts))
    return found
