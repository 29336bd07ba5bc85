"""What a program's `--trace` wrote, as one Timeline per rank: the same noun as a prediction, so the same pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epsc.ir.attrs import Direction, TransferAttrs
from epsc.ir.dims import cuts_parse
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.ir.kinds import Role
from epsc.ir.schedule import HOST_LANE, Schedule
from epsc.machine.timeline import Event, Timeline

_US = 1e-6


@dataclass(frozen=True)
class Measured:
    """A run of every rank. Each rank's times count from its own earliest step, unless the file aligned its clocks."""

    name: str
    ranks: dict[int, Timeline]

    def slowest(self, step: str) -> float | None:
        """Seconds of a step on the rank that took longest over it."""
        found = [t.event[step].seconds for t in self.ranks.values() if step in t.event]
        return max(found, default=None)


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
    spans: list[Mapping[str, Any]] = []
    for event in data["traceEvents"]:
        try:
            if event["ph"] == "M" and event["name"] == "thread_name":
                threads[int(event["pid"]), int(event["tid"])] = str(event["args"]["name"])
            elif event["ph"] == "X":
                spans.append({**event, "ts": float(event["ts"]), "dur": float(event["dur"]), "pid": int(event["pid"])})
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(f"{name} holds an event that is none of a trace: {error!r}") from None
    if not spans:
        raise _bad(f"{name} holds no step that ran")
    first = {rank: min(s["ts"] for s in spans if s["pid"] == rank) for rank in sorted({s["pid"] for s in spans})}
    origin = min(first.values()) if data.get("otherData", {}).get("aligned") else None
    ranks = {}
    for rank, own in first.items():
        since = own if origin is None else origin
        events = [
            _event(span, threads.get((rank, span.get("tid", 0)), f"lane {span.get('tid', 0)}"), since, schedule, name)
            for span in spans
            if span["pid"] == rank
        ]
        events.sort(key=lambda event: event.start)
        lanes = tuple(dict.fromkeys(event.lane for event in events))
        ranks[rank] = Timeline(f"{schedule.name if schedule else name}, rank {rank}", 0, lanes, tuple(events))
    return Measured(name, ranks)


def _event(span: Mapping[str, Any], lane: str, since: float, schedule: Schedule | None, name: str) -> Event:
    key = str(span["name"])
    node, _, cuts = key.partition("[")
    start = (span["ts"] - since) * _US
    end = start + span["dur"] * _US
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
