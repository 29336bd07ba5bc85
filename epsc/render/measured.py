"""What a program's `--trace` wrote, as one Timeline per rank: the same noun as a prediction, so the same pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from epsc.ir.attrs import Direction, TransferAttrs
from epsc.ir.dims import cuts_parse
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.ir.kinds import Role
from epsc.ir.schedule import HOST_LANE, Schedule
from epsc.machine.timeline import Event, Timeline
from epsc.render.amounts import duration

_US = 1e-6


@dataclass(frozen=True)
class Measured:
    """A run of every rank. Times count from the earliest step of all if clocks are aligned, else of each rank."""

    name: str
    ranks: dict[int, Timeline]
    residual: float | None = None
    """Where the trace says that clocks are aligned: how far two of them may be apart still, in seconds."""

    @property
    def clocks(self) -> str:
        """What times of two ranks mean beside each other."""
        if len(self.ranks) < 2:
            return "one rank"
        if self.residual is None:
            return "clocks not aligned: the times of each rank count from its own first step"
        return f"clocks aligned, at most {duration(self.residual)} apart"


def is_trace(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("traceEvents"), list)


def measured(name: str, text: str, schedule: Schedule | None = None) -> Measured:
    """The trace in `text`; with a schedule, of that schedule. Raises EpsError if it is none, or of another."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad(f"{name}:{error.lineno}:{error.colno}: this is no JSON: {error.msg}") from None
    if not is_trace(data):
        raise _bad(f"{name} holds no `traceEvents`")
    threads: dict[tuple[int, int], str] = {}
    spans: list[_Span] = []
    for event in data["traceEvents"]:
        try:
            if event["ph"] == "M" and event["name"] == "thread_name":
                threads[int(event["pid"]), int(event["tid"])] = str(event["args"]["name"])
            elif event["ph"] == "X":
                spans.append(_Span(str(event["name"]), int(event["pid"]), int(event.get("tid", 0)), *_times(event)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _bad(f"{name} holds an event that is none of a trace: {error!r}") from None
    if not spans:
        raise _bad(f"{name} holds no step that ran")
    residual = _apart(data, name)
    shifts = _shifts(spans, residual is not None)
    ranks = {}
    for rank, shift in shifts.items():
        events = [
            _event(span, threads.get((rank, span.tid), f"lane {span.tid}"), shift, schedule, name)
            for span in spans
            if span.rank == rank
        ]
        events.sort(key=lambda event: event.start)
        lanes = tuple(dict.fromkeys(event.lane for event in events))
        ranks[rank] = Timeline(f"{schedule.name if schedule else name}, rank {rank}", 0, lanes, tuple(events))
    return Measured(name, ranks, residual)


@dataclass(frozen=True)
class _Span:
    key: str
    rank: int
    tid: int
    start: float
    end: float


def _times(event: Mapping[str, Any]) -> tuple[float, float]:
    start, long = float(event["ts"]) * _US, float(event["dur"]) * _US
    if not (isfinite(start) and isfinite(long) and long >= 0):
        raise ValueError(f"ts {event['ts']}, dur {event['dur']}")
    return start, start + long


def _apart(data: Mapping[str, Any], name: str) -> float | None:
    """How far the clocks of two ranks may be apart, in seconds; None if nobody aligned them."""
    about = data.get("otherData")
    if not isinstance(about, dict) or "apart_us" not in about:
        return None
    try:
        apart = float(about["apart_us"]) * _US
    except (TypeError, ValueError, OverflowError):
        apart = -1.0
    if not (isfinite(apart) and apart >= 0):
        raise _bad(f"{name} says that clocks are {about['apart_us']!r} us apart")
    return apart


def _shifts(spans: list[_Span], aligned: bool) -> dict[int, float]:
    """What to add to the times of each rank: they count from the first step of all, or of each rank on its own."""
    first = {rank: min(s.start for s in spans if s.rank == rank) for rank in sorted({s.rank for s in spans})}
    return {rank: -(min(first.values()) if aligned else start) for rank, start in first.items()}


def _event(span: _Span, lane: str, shift: float, schedule: Schedule | None, name: str) -> Event:
    key = span.key
    node, _, cuts = key.partition("[")
    start, end = span.start + shift, span.end + shift
    try:
        parsed = cuts_parse(cuts.rstrip("]"))
    except (EpsError, ValueError):
        raise _bad(f"{name}: `{key}` is no step of a program") from None
    chunk = parsed[0].index if parsed else None
    if schedule is None:
        return Event(key, node, lane, _role_of(lane), start, end, chunk=chunk)
    if key not in schedule.step:
        raise EpsError(
            Diagnostic(
                "other-plan",
                f"{name} is no trace of `{schedule.name}`, which has no step `{key}`",
                help=did_you_mean(key, schedule.step),
            )
        )
    info = schedule.graph.node[node]
    direction: Direction | None = info.attrs.direction if isinstance(info.attrs, TransferAttrs) else None
    return Event(key, node, lane, info.info.role, start, end, chunk=chunk, direction=direction)


def _role_of(lane: str) -> Role:
    """A trace alone does not say what its steps are; its lanes say it in the coarse."""
    if lane == HOST_LANE:
        return Role.HOST
    return Role.TRANSFER if lane in ("dispatch", "combine", "transfer") else Role.COMPUTE


def _bad(message: str) -> EpsError:
    return EpsError(Diagnostic("bad-trace", message, help="a program writes one with --trace FILE"))
