"""Where the time of a Timeline goes and why a transfer is not hidden: read off its events; nothing is modelled here."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule
from epsc.machine.needs import makers_of
from epsc.machine.timeline import Event, Interval, Timeline, length, union

_INSTANT = 1e-9


class Spent(StrEnum):
    """What a moment goes to: of all that runs in it, the first of these."""

    PRODUCTS = "products"
    PASSES = "gathers, activations, sums"
    EXPOSED = "transfers that nothing hides"
    ROUTING = "routing and counts"
    HOST = "the host, which reads sizes"
    IDLE = "nothing: launches and events are waited for"


_ORDER = {
    Role.COMPUTE: Spent.PRODUCTS,
    Role.MEMORY: Spent.PASSES,
    Role.TRANSFER: Spent.EXPOSED,
    Role.CONTROL: Spent.ROUTING,
    Role.HOST: Spent.HOST,
}


class Why(StrEnum):
    """Why a transfer is exposed."""

    LITTLE_WORK = "too little work"
    DEPENDENCY = "dependency"
    SMS = "SM contention"
    LAUNCH = "launch"
    LANE = "lane order"
    RESOURCE = "resource"
    """A link, a copy engine or a communicator that something else holds."""
    IMBALANCE = "load imbalance"
    """Nothing moves: ranks that have more rows have not come."""


@dataclass(frozen=True)
class Exposure:
    """A stretch of time in which a transfer runs and no product or pass does."""

    step: str
    seconds: float
    why: Why
    words: str


def spent(timeline: Timeline) -> dict[Spent, float]:
    """Seconds of the timeline by what they go to; they add up to its total."""
    found = dict.fromkeys(Spent, 0.0)
    ranks = list(_ORDER)
    changes = [(e.start, 1, e.role) for e in timeline.events] + [(e.end, -1, e.role) for e in timeline.events]
    running = dict.fromkeys(ranks, 0)
    now = 0.0
    for time, by, role in sorted(changes, key=lambda change: change[0]):
        first = next((each for each in ranks if running[each]), None)
        found[_ORDER[first] if first else Spent.IDLE] += time - now
        now = time
        running[role] += by
    return found


def exposures(timeline: Timeline, schedule: Schedule) -> list[Exposure]:
    """Each exposed stretch, with what kept compute from running in it."""
    needs = makers_of(schedule)
    transfers = sorted((e for e in timeline.events if e.role is Role.TRANSFER), key=lambda e: e.start)
    compute = sorted((e for e in timeline.events if e.role in (Role.COMPUTE, Role.MEMORY)), key=lambda e: e.start)
    return [_exposure(interval, transfers, compute, needs) for interval in timeline.exposed]


def _exposure(
    interval: Interval, transfers: list[Event], compute: list[Event], needs: dict[str, tuple[str, ...]]
) -> Exposure:
    """`transfers` and `compute` in the order in which they start."""
    start, end = interval
    moving = [e for e in transfers[: bisect_left(transfers, end, key=lambda e: e.start)] if e.end > start]
    step = max(moving, key=lambda e: min(e.end, end) - max(e.start, start)).step
    waited = length(union((max(e.start, start), min(e.start + e.waits, end)) for e in moving))
    tail = f"; for {waited / (end - start):.0%} of it nothing moves, as other ranks have not come" if waited else ""
    if waited > 0.5 * (end - start):
        return Exposure(step, end - start, Why.IMBALANCE, tail.removeprefix("; "))
    later = compute[bisect_left(compute, end - _INSTANT, key=lambda e: e.start) :]
    if not later:
        return Exposure(step, end - start, Why.LITTLE_WORK, f"nothing is left to run beside it{tail}")
    free = next((e for e in later if step not in _behind(e.step, needs)), None)
    if free is None:
        words = f"all that is left needs what it brings, {later[0].step} first{tail}"
        return Exposure(step, end - start, Why.LITTLE_WORK, words)
    why, words = _held(free)
    return Exposure(step, end - start, why, words + tail)


def _held(event: Event) -> tuple[Why, str]:
    """What kept a step that does not need the transfer from running beside it."""
    words = f"{event.step} could run beside it, but waits for {event.waited_for or 'nothing that is known'}"
    if event.waited_for.startswith("SMs"):
        return Why.SMS, words
    if "held by" in event.waited_for:
        return Why.RESOURCE, words
    if event.waited_for == "the host to issue it":
        return Why.LAUNCH, words
    return (Why.LANE if event.waited_for.endswith("on its lane") else Why.DEPENDENCY), words


def _behind(step: str, needs: dict[str, tuple[str, ...]]) -> set[str]:
    """All steps that this one needs, near and far."""
    found: set[str] = set()
    todo = [step]
    while todo:
        for maker in needs.get(todo.pop(), ()):
            if maker not in found:
                found.add(maker)
                todo.append(maker)
    return found


def least_total(timeline: Timeline) -> dict[str, float]:
    """What no order of these steps can beat: the seconds alone of all that one resource has to do."""
    work: dict[str, float] = {}
    for event in timeline.events:
        alone = event.seconds - event.slowed
        if event.role is Role.TRANSFER:
            work["transfers"] = work.get("transfers", 0.0) + alone
        elif event.role in (Role.COMPUTE, Role.MEMORY):
            work["products and passes"] = work.get("products and passes", 0.0) + alone
    work["launches"] = timeline.host_busy
    return work
