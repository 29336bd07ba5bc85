"""Schedules of one layer as rows of one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epsc.machine.totals import Totals
from epsc.render.amounts import amount, duration
from epsc.render.table import aligned

LEGEND = """\
predicted: by the model of the machine; exposed: time in which a transfer runs and no compute; sent: bytes that leave a
rank; moved: bytes of device memory read and written, weights read among them; buffers: memory for rows, beside the
weights held; roundings: of a value on its longest way through the layer"""
MEASURED = "measured: median of a forward on this machine, the slowest rank; error: relative to fp32"


@dataclass(frozen=True)
class Line:
    name: str
    totals: Totals
    held: float
    measured: tuple[float, float] | None = None
    """Seconds, and the relative error."""


def comparison(lines: Sequence[Line], measured: bool = False) -> str:
    """The table, with what its columns mean; `measured`: with columns of what was measured, for lines that have it."""
    titles = ["schedule", "predicted"]
    titles += ["measured", "error"] if measured else []
    host = any(line.totals.brought for line in lines)
    titles += ["exposed", "hidden", "sent", *(["from host"] if host else []), "moved", "weights read", "weights held"]
    titles += ["buffers", "launches", "roundings"]
    rows = []
    for line in lines:
        t = line.totals
        ran = ["-", "-"] if line.measured is None else [duration(line.measured[0]), f"{line.measured[1]:.1e}"]
        rows.append(
            [
                line.name,
                duration(t.seconds),
                *(ran if measured else []),
                duration(t.exposed),
                f"{t.hidden:.0%}" if t.transfers else "-",
                amount(t.sent, "B"),
                *([amount(t.brought, "B")] if host else []),
                amount(t.moved, "B"),
                amount(t.weights, "B"),
                amount(line.held, "B"),
                amount(t.buffers, "B"),
                str(t.launches),
                str(t.roundings),
            ]
        )
    return "\n".join([aligned(titles, rows), "", LEGEND, *([MEASURED] if measured else [])])
