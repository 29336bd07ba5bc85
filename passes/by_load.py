"""by_load: the ranges of load of a schedule that takes others by load, and which schedule each of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from epsc.ir.errors import Faults, did_you_mean
from epsc.ir.spec import Name, ScheduleDecl, When
from epsc.passes.numbers import LOAD_KEY, Numbers

METRIC = "tokens"
"""What ranges are of: tokens of the rank that has most, the one number that all ranks share."""
DEEPEST = 32
"""Schedules that take others that take others: no file needs more, and each is a call here."""
SERIAL = ScheduleDecl("serial")
"""What a file without schedules gets."""


@dataclass(frozen=True)
class Range:
    """Tokens of the fullest rank, least and most, and the schedule for them: directives, or an `auto`."""

    load: tuple[int, int]
    decl: ScheduleDecl


def ranges_of(
    decl: ScheduleDecl, schedules: Sequence[ScheduleDecl], numbers: Numbers, load: tuple[int, int], faults: Faults
) -> tuple[Range, ...]:
    """The ranges of `decl` that meet `load`, without gaps, from the least; of one that takes no others a single one.

    Limits beyond the load that the file is for are faults. Those beyond what `-D tokens` asks for are not, nor any
    where only one load is asked for.
    """
    known = {"serial": SERIAL, **{each.name: each for each in schedules}}
    tell = Faults() if numbers.replaced(LOAD_KEY) is not None or load[0] == load[1] else faults
    return _ranges(decl, known, numbers, load, (), faults, tell)


def _ranges(
    decl: ScheduleDecl,
    known: Mapping[str, ScheduleDecl],
    numbers: Numbers,
    load: tuple[int, int],
    above: tuple[str, ...],
    faults: Faults,
    outside: Faults,
) -> tuple[Range, ...]:
    """`above`: the schedules that lead here; `outside` is told of limits that no load reaches."""
    if decl.by_load is None:
        return (Range(load, decl),)
    above = (*above, decl.name)
    found: list[Range] = []
    least = load[0]
    for name, most in zip(decl.by_load.names, _limits(decl, numbers, load, faults, outside), strict=True):
        taken = _taken(name, known, above, faults)
        if most is None or taken is None:
            continue
        if least <= (most := min(most, load[1])):
            found += _ranges(taken, known, numbers, (least, most), above, faults, Faults())
            least = most + 1
    if len(found) == 1:  # as if that schedule were written here
        return (replace(found[0], decl=replace(found[0].decl, name=decl.name)),)
    return tuple(found)


def _taken(
    name: Name, known: Mapping[str, ScheduleDecl], above: tuple[str, ...], faults: Faults
) -> ScheduleDecl | None:
    """The schedule that a name stands for; None after adding a fault."""
    if name.name == "auto":
        if "auto" in known:
            message = "`auto` is what epsc chooses, and the file has a schedule of that name"
            faults.add("bad-range", message, name.span, help="give that schedule another name")
        return ScheduleDecl("auto", auto=True, span=name.span)
    if name.name not in known:
        help = did_you_mean(name.name, {*known, "auto"})
        faults.add("unknown-schedule", f"the file has no schedule `{name.name}`", name.span, help=help)
        return None
    taken = known[name.name]
    if name.name in above:
        circle = " takes ".join(f"`{each}`" for each in (*above[above.index(name.name) :], name.name))
        faults.add("bad-range", f"a schedule cannot take itself: {circle}", name.span)
        return None
    if len(above) > DEEPEST:
        faults.add("bad-range", f"more than {DEEPEST} schedules lead to `{name.name}`, each by another", name.span)
        return None
    if taken.by_tokens:
        message = f"`{name.name}` has ranges of its own, which epsc finds for the whole load"
        faults.add("bad-range", message, name.span, help="take `auto`: one plan, for the most tokens of this range")
        return None
    return taken


def _limits(
    decl: ScheduleDecl, numbers: Numbers, load: tuple[int, int], faults: Faults, outside: Faults
) -> list[int | None]:
    """The most tokens for which each of the schedules is taken; None where that cannot be said."""
    assert decl.by_load is not None
    found: list[int | None] = []
    last = -1
    for when in decl.by_load.whens:
        most = _limit(when, numbers, faults)
        if most is not None and most <= last:
            message = f"no load is left for this: `{METRIC} <= {last}` was taken before it"
            faults.add("bad-range", message, when.span, help="let the limits rise from left to right")
            most = None
        elif most is not None:
            last = most
            if not load[0] <= most < load[1]:
                message = f"{most} does not part the load of this file, which is {load[0]} .. {load[1]}"
                outside.add("bad-range", message, when.span, help="a `tokens` line says what the load is")
        found.append(most)
    return [*found, load[1]]


def _limit(when: When, numbers: Numbers, faults: Faults) -> int | None:
    """The most tokens for which the condition holds; None after adding a fault."""
    if when.metric != METRIC or when.op not in ("<", "<="):
        message = f"a schedule is taken by load, which `{when.metric} {when.op}` does not limit"
        faults.add("bad-range", message, when.span, help=f"write `{METRIC} <= NUMBER` or `{METRIC} < NUMBER`")
        return None
    value = numbers.whole(when.value, f"`{METRIC}`", least=0)
    return None if value is None else value - (when.op == "<")
