"""Two schedules or runs, op by op: what was decided otherwise, and what each op takes in both."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.schedule import Schedule
from epsc.machine.timeline import Timeline
from epsc.render.amounts import duration
from epsc.render.gantt import headline
from epsc.render.html.side import Side
from epsc.render.table import aligned

_NONE = "none"


@dataclass(frozen=True)
class _Op:
    """An op as one side has it; texts are empty where the side does not say."""

    pieces: str
    by: str = ""
    lane: str = ""
    sms: str = ""
    waits: str = ""
    seconds: float | None = None
    """Of all its pieces, in a run on the rank that took longest over each."""


def differences(a: Side, b: Side) -> str:
    """A table with a line per op, in the order of `a`, then what only `b` has."""
    ops_a, ops_b = _ops(a), _ops(b)
    rows = []
    for name in dict.fromkeys([*ops_a, *ops_b]):
        one, two = ops_a.get(name), ops_b.get(name)
        pieces = _both(*(op.pieces if op else _NONE for op in (one, two)))
        told = [pieces] + [_both(*(getattr(op, part) if op else "" for op in (one, two))) for part in _DECIDED]
        times = (one.seconds if one else 0.0, two.seconds if two else 0.0)
        rows.append([name, *told, *_times(*times)])
    rows += _totals(a, b)
    heads = [f"A: {_headline(a)}", f"B: {_headline(b)}"]
    return "\n".join([*heads, "", aligned(["op", "pieces", "by", "lane", "SMs", "waits", "A", "B", "B - A"], rows)])


_DECIDED = ("by", "lane", "sms", "waits")


def _ops(side: Side) -> dict[str, _Op]:
    seconds = _seconds(side)
    if side.schedule is None:
        pieces: dict[str, int] = {}
        for step in seconds:
            pieces[_node(step)] = pieces.get(_node(step), 0) + 1
        return {name: _Op(str(count), seconds=_of(name, seconds)) for name, count in pieces.items()}
    return {
        name: _said(name, side.schedule, seconds, side) for name in dict.fromkeys(s.node for s in side.schedule.steps)
    }


def _said(name: str, schedule: Schedule, seconds: dict[str, float], side: Side) -> _Op:
    steps = [step for step in schedule.steps if step.node == name]
    first = steps[0]
    cut = f" by {first.cuts[0].axis}" if first.cuts else ""
    impls = (
        {side.predicted[-1].event[step.key].impl for step in steps} if side.predicted else {str(s.impl) for s in steps}
    )
    return _Op(
        f"{len(steps)}{cut}",
        " and ".join(sorted(impls)),
        " and ".join(sorted({step.lane for step in steps})) or "-",
        str(first.sms) if first.sms else "any",
        str(sum(len(step.waits) for step in steps)),
        _of(name, seconds) if seconds else None,
    )


def _seconds(side: Side) -> dict[str, float]:
    """What each step takes, as predicted at the highest load, else as measured on the slowest rank."""
    if side.predicted:
        return {event.step: event.seconds for event in side.predicted[-1].events}
    found: dict[str, float] = {}
    for timeline in side.measured.ranks.values() if side.measured else ():
        for event in timeline.events:
            found[event.step] = max(found.get(event.step, 0.0), event.seconds)
    return found


def _of(name: str, seconds: dict[str, float]) -> float:
    return sum(taken for step, taken in seconds.items() if _node(step) == name)


def _node(step: str) -> str:
    return step.partition("[")[0]


def _both(a: str, b: str) -> str:
    """One text where the two say the same or one says nothing."""
    if a and b and a != b:
        return f"{a} -> {b}"
    return a or b or "-"


def _times(a: float | None, b: float | None) -> list[str]:
    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else duration(seconds)

    if a is None or b is None:
        return [shown(a), shown(b), "-"]
    change = b - a
    if abs(change) < 5e-10:
        return [shown(a), shown(b), "same"]
    return [shown(a), shown(b), f"{'+' if change > 0 else '-'}{duration(abs(change))}"]


def _totals(a: Side, b: Side) -> list[list[str]]:
    """The end of the last step, and exposed transfer: of a run on the rank where it is longest."""
    blank = [""] * (1 + len(_DECIDED))
    rows = []
    for words, value in (("exposed transfer", lambda t: t.exposed_transfer), ("whole layer", lambda t: t.total)):
        times = [max(map(value, timelines)) if (timelines := _timelines(side)) else None for side in (a, b)]
        rows.append([words, *blank, *_times(*times)])
    return rows


def _timelines(side: Side) -> list[Timeline]:
    if side.predicted:
        return [side.predicted[-1]]
    return list(side.measured.ranks.values()) if side.measured else []


def _headline(side: Side) -> str:
    if side.predicted:
        return f"{headline(side.predicted[-1])}, predicted"
    if side.measured:
        count = len(side.measured.ranks)
        return f"{side.measured.name}, measured on {count} rank{'' if count == 1 else 's'}"
    assert side.schedule
    return f"{side.name}, ep {side.schedule.ep}, {side.schedule.chip_sms} SMs, without times"
