"""fits: whether what a plan keeps in memory is more than its device has. Times are predicted; this is counted."""

from __future__ import annotations

from collections.abc import Sequence

from epsc.ir.errors import Diagnostic, Severity
from epsc.ir.schedule import Schedule
from epsc.ir.source import Span
from epsc.machine.cluster import Device
from epsc.machine.totals import buffer_bytes, held_bytes, symmetric_bytes


def too_large(schedule: Schedule, device: Device, load: int, span: Span | None = None) -> Diagnostic | None:
    """The warning that weights, and rows of `load` tokens of each rank, are more than `device` has memory for."""
    rows, weights = buffer_bytes(schedule, load), held_bytes(schedule)
    if not device.memory_bytes or rows + weights <= device.memory_bytes:
        return None
    help = "plan for fewer tokens, with -D tokens=N or a `tokens` line"
    origins = {node.origin for node in schedule.graph.nodes if node.kind in ("expand", "put_copies")}
    if origins:
        help = f"bound the rows that can come: `room 2 for {', '.join(sorted(origins))}`; or {help}"
    return Diagnostic(
        "memory",
        f"`{schedule.name}` keeps {_gb(rows)} of rows, with {load} tokens on each rank, and {_gb(weights)} of weights"
        f" in memory, and a {device.name} has {_gb(device.memory_bytes)}",
        span,
        help=help,
        severity=Severity.WARNING,
    )


def together(parts: Sequence[tuple[Schedule, int]]) -> float:
    """Bytes of rows that the plans of one program keep, each with its most tokens: what other ranks write to outlives a
    forward pass and is each plan's own; the rest is there for one forward at a time."""
    ours = [symmetric_bytes(schedule, most) for schedule, most in parts]
    return sum(ours) + max(buffer_bytes(*part) - own for part, own in zip(parts, ours, strict=True))


def too_large_together(
    name: str, parts: Sequence[tuple[Schedule, int]], device: Device, span: Span | None = None
) -> Diagnostic | None:
    """The warning that the plans of one program, each of which may fit alone, are more than `device` has memory for."""
    rows, weights = together(parts), held_bytes(parts[0][0])
    if not device.memory_bytes or rows + weights <= device.memory_bytes:
        return None
    return Diagnostic(
        "memory",
        f"the plans of `{name}` keep {_gb(rows)} of rows, where other ranks write into memory of each, and"
        f" {_gb(weights)} of weights in memory, and a {device.name} has {_gb(device.memory_bytes)}",
        span,
        help="let fewer plans store rows into the memory of other ranks, or plan for fewer tokens",
        severity=Severity.WARNING,
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.4g} GB"
