"""fits: whether what a plan keeps in memory is more than its device has. Times are predicted; this is counted."""

from __future__ import annotations

from epsc.ir.errors import Diagnostic, Severity
from epsc.ir.schedule import Schedule
from epsc.ir.source import Span
from epsc.machine.cluster import Device
from epsc.machine.totals import buffer_bytes, held_bytes


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


def _gb(size: float) -> str:
    return f"{size / 1e9:.4g} GB"
