"""A Timeline as text: lanes are rows, time goes right, bars carry chunk digits, exposed transfers are marked."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from math import floor, log10

from epsc.ir.attrs import Direction
from epsc.ir.kinds import Role
from epsc.machine.timeline import Event, Interval, Timeline, length
from epsc.render.amounts import duration, whose

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LEAST = 30
"""Columns for the bars even if the terminal is narrower."""


@dataclass(frozen=True)
class _Look:
    """How bars of one sort are drawn: a letter without colour, a 256-colour background with it."""

    fill: str
    colour: int
    words: str


_DISPATCH = _Look(">", 71, "to the experts")
_COMBINE = _Look("<", 179, "back home")
_LOOKS = {
    Role.COMPUTE: _Look("#", 68, "GEMM"),
    Role.MEMORY: _Look("=", 110, "gather, activation, sum"),
    Role.CONTROL: _Look("-", 247, "routing, counts"),
    Role.HOST: _Look("h", 139, "host waits"),
}


def gantt(timeline: Timeline, width: int = 100, color: bool = False) -> str:
    """The timeline in at most `width` columns; pure ASCII without `color`, ANSI colours and Unicode with it."""
    lanes = sorted(timeline.lanes, key=lambda lane: _busy(timeline, lane), reverse=True)
    margin = max((len(name) for name in (*lanes, "exposed")), default=0) + 1
    columns = max(_LEAST, width - margin - 2)
    cell = timeline.total / columns if timeline.total else 1.0
    edge = "│" if color else "|"
    lines = _head(timeline, width, color)
    for lane in lanes:
        events = [event for event in timeline.events if event.lane == lane]
        lines.append(f"{lane:<{margin}}{edge}{_row(events, columns, cell, color)}{edge}")
    if timeline.transfers:
        lines.append(f"{'exposed':<{margin}}{edge}{_marks(timeline.exposed, columns, cell, color)}{edge}")
    lines += [" " * (margin + 1) + line for line in _axis(timeline.total, columns, color)]
    lines += _wrap(_legend(timeline, color), width, color)
    return "\n".join(line.rstrip() for line in lines)


def headline(timeline: Timeline) -> str:
    total, before, exposed, after = head_words(timeline)
    return f"{total}; {before}{exposed}{after}" if before else total


def _head(timeline: Timeline, width: int, color: bool) -> list[str]:
    """The headline, on more lines where it is wider than the terminal; with colour, what is exposed is red."""
    total, before, exposed, after = head_words(timeline)
    words, room = headline(timeline), max(width, _LEAST)
    lines = [words] if len(words) <= room else textwrap.wrap(total, room)
    if before and lines != [words]:
        lines += textwrap.wrap(f"{before}{exposed}{after}", room)
    if not (color and timeline.exposed):
        return lines
    return [line.replace(exposed, f"\x1b[1;31m{exposed}\x1b[0m") for line in lines]


def head_words(timeline: Timeline) -> tuple[str, str, str, str]:
    """How long it takes; and of its transfers, if there are any, how long they are, what is exposed, and the rest."""
    total = f"{timeline.name}, {timeline.load} tokens per rank{whose(timeline)}: {duration(timeline.total)}"
    if not timeline.transfers:
        return total, "", "", ""
    # Without it, the share that is hidden would not follow from what is said.
    slowed = (
        f", compute {duration(timeline.slowed)} slower beside them" if timeline.slowed > 0.01 * timeline.total else ""
    )
    waits = sum(event.waits for event in timeline.events)
    waiting = f", {duration(waits)} of it waiting for busier ranks" if waits else ""
    before = f"transfers {duration(length(timeline.transfers))}{waiting}, "
    return total, before, f"{duration(timeline.exposed_transfer)} exposed", f"{slowed} ({timeline.hidden:.0%} hidden)"


def _busy(timeline: Timeline, lane: str) -> float:
    return sum(event.seconds for event in timeline.events if event.lane == lane)


def _row(events: list[Event], columns: int, cell: float, color: bool) -> str:
    owners = _owners(events, columns, cell)
    text = []
    column = 0
    while column < columns:
        event = owners[column]
        stop = column
        while stop < columns and owners[stop] is event:
            stop += 1
        if event is None:
            text.append((" " if color else ".") * (stop - column))
        else:
            text.append(_bar(event, stop - column, color))
        column = stop
    return "".join(text)


def _owners(events: list[Event], columns: int, cell: float) -> list[Event | None]:
    """Per cell the event that fills most of it, if events fill half of it; short events take a cell that is free."""
    owners: list[Event | None] = []
    for column in range(columns):
        start, end = column * cell, (column + 1) * cell
        parts = [(min(e.end, end) - max(e.start, start), e) for e in events if e.start < end and e.end > start]
        filled = sum(part for part, _ in parts) >= 0.5 * cell
        owners.append(max(parts, key=lambda p: p[0])[1] if filled else None)
    for event in events:
        middle = min(columns - 1, int((event.start + event.end) / 2 / cell))
        if event.seconds and event not in owners and owners[middle] is None:
            owners[middle] = event
    return owners


def _bar(event: Event, size: int, color: bool) -> str:
    """`0#up####`: the chunk digit first, the op's name where there is room, all in the letter of its sort; before that,
    cells in which it waits for other ranks."""
    if waits := round(size * event.waits / event.seconds) if event.seconds else 0:
        rest = replace(event, start=event.start + event.waits, met=None)
        return "~" * waits + (_bar(rest, size - waits, color) if size > waits else "")
    fill = " " if color else _look(event).fill
    start = "▏" if color else "["
    if event.chunk is not None:
        start = _DIGITS[event.chunk] if event.chunk < len(_DIGITS) else "*"
    label = start if size > 1 else fill
    # The binding is what a schedule names: `sent` says more than a cut-off `sent.all2all`.
    for name in (event.node, event.node.partition(".")[0]):
        if len(name) + 4 <= size:
            label = f"{start}{fill}{name}{fill}"
            break
    bar = label.ljust(size, fill)
    return f"\x1b[30;48;5;{_look(event).colour}m{bar}\x1b[0m" if color else bar


def _look(event: Event) -> _Look:
    if event.role is Role.TRANSFER:
        return _COMBINE if event.direction is Direction.COMBINE else _DISPATCH
    return _LOOKS[event.role]


def _marks(intervals: list[Interval], columns: int, cell: float, color: bool) -> str:
    marked = [
        sum(max(0.0, min(end, (c + 1) * cell) - max(start, c * cell)) for start, end in intervals) >= 0.5 * cell
        for c in range(columns)
    ]
    if not color:
        return "".join("!" if mark else " " for mark in marked)
    return "".join("\x1b[31m▀\x1b[0m" if mark else " " for mark in marked)


def _axis(total: float, columns: int, color: bool) -> list[str]:
    """Ticks at round times: a ruler, and the numbers under it."""
    if not total:
        return []
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if total >= u), (1e-9, "ns"))
    span = total / unit
    least = span / (columns / 9)
    power = 10.0 ** floor(log10(least))
    step = next(s * power for s in (1, 2, 5, 10, 20) if s * power >= least)
    ruler, numbers = ["─" if color else "-"] * columns, [" "] * (columns + 8)
    k = 0
    while k * step < span:
        column = min(columns - 1, round(k * step / span * columns))
        ruler[column] = "┴" if color else "+"
        text = f"{k * step:g}" + (f" {name}" if k == 0 else "")
        if column + len(text) <= columns:
            numbers[column : column + len(text)] = text
        k += 1
    return ["".join(ruler), "".join(numbers)]


def _legend(timeline: Timeline, color: bool) -> list[str]:
    looks = list(dict.fromkeys(_look(event) for event in sorted(timeline.events, key=lambda e: e.role)))
    samples = [(f"\x1b[48;5;{look.colour}m  \x1b[0m " if color else f"{look.fill * 2} ") + look.words for look in looks]
    if any(event.chunk is not None for event in timeline.events):
        samples.append("0 1 2 chunk")
    if any(event.waits for event in timeline.events):
        samples.append("~~ waits for busier ranks")
    if timeline.exposed:
        samples.append(("\x1b[31m▀▀\x1b[0m" if color else "!!") + " a transfer that nothing hides")
    return samples


def _wrap(samples: list[str], width: int, color: bool) -> list[str]:
    """The legend in lines of at most `width` visible characters."""
    lines: list[tuple[int, str]] = []
    for sample in samples:
        size = len(sample) - sum(len(code) for code in _codes(sample) if color)
        if lines and lines[-1][0] + 3 + size <= width:
            lines[-1] = (lines[-1][0] + 3 + size, f"{lines[-1][1]}   {sample}")
        else:
            lines.append((size, sample))
    return [line for _, line in lines]


def _codes(text: str) -> list[str]:
    """The escape codes in a text, which take no room."""
    return ["\x1b" + part.split("m", 1)[0] + "m" for part in text.split("\x1b")[1:]]
