"""The whole proof of a Schedule, as far as its stage goes. Runs after every pass and on every plan that is read."""

from __future__ import annotations

from collections.abc import Sequence

from epsc.ir.errors import Diagnostic, Faults
from epsc.ir.schedule import Schedule, Stage
from epsc.proof.collectives import check_collectives
from epsc.proof.happens import Happens
from epsc.proof.hazards import check_hazards
from epsc.proof.memory import check_memory
from epsc.proof.one_sided import check_one_sided
from epsc.proof.resources import check_resources
from epsc.proof.structure import check_structure


def prove(schedule: Schedule, others: Sequence[Schedule] = ()) -> list[Diagnostic]:
    """Raise EpsError with everything that is wrong; else the warnings.

    `others` are what ranks 1, 2, ... run where that differs from what rank 0 runs, `schedule`; without them all ranks
    run the same. Later checks lean on earlier ones: one that is not of its graph is not asked about races.
    """
    faults = Faults()
    schedule.graph.verify()
    for each in (schedule, *others):
        check_structure(each, faults)
    faults.raise_if_any()
    if schedule.stage >= Stage.SYNCED:
        for each in (schedule, *others):
            happens = Happens.of(each)
            check_hazards(each, happens, faults)
            check_resources(each, happens, faults)
        check_one_sided([schedule, *others], faults)
        check_collectives([schedule, *others], faults)
    if schedule.stage >= Stage.BUFFERED:
        for each in (schedule, *others):
            check_memory(each, faults)
    faults.raise_if_any()
    return faults.warnings
