"""Which steps each step waits for, and which make what it reads."""

from __future__ import annotations

from epsc.ir.regions import Regions
from epsc.ir.schedule import Schedule, Stage


def waits_of(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """The steps that each step waits for: as said, or before Stage.SYNCED all that make what it reads."""
    if schedule.stage >= Stage.SYNCED:
        return {step.key: tuple(dict.fromkeys(wait.step for wait in step.waits)) for step in schedule.steps}
    return makers_of(schedule)


def makers_of(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """The steps that make what each step reads."""
    found: dict[str, tuple[str, ...]] = {}
    makers: dict[str, Regions[str]] = {}
    for step in schedule.steps:
        for ref in step.writes:
            makers.setdefault(ref.value, Regions()).add(ref.cuts, step.key)
    for step in schedule.steps:
        found[step.key] = tuple(
            dict.fromkeys(
                key
                for ref in step.reads
                if ref.value in makers
                for key in makers[ref.value].meeting(ref.cuts)
                if key != step.key
            )
        )
    return found


def signals_of(schedule: Schedule) -> dict[str, frozenset[str]]:
    """The steps of each step's waits that must be done on every rank, which the ranks signal to each other."""
    return {step.key: frozenset(wait.step for wait in step.waits if wait.everywhere) for step in schedule.steps}
