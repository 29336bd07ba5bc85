"""Plan: the schedule as a table for the top of the file."""

from __future__ import annotations

from epsc.ir.schedule import Schedule, Step


def plan_table(schedule: Schedule) -> list[str]:
    """One line per op: on which lane it runs, in how many pieces, by what; in issue order of their first pieces."""
    rows = [("op", "lane", "pieces", "by", "SMs", "waits for")]
    steps: dict[str, list[Step]] = {}
    for step in schedule.steps:
        steps.setdefault(step.node, []).append(step)
    for node, pieces in steps.items():
        first = pieces[0]
        cut = f"{len(pieces)} by {first.cuts[0].axis}" if first.cuts else "1"
        waits = dict.fromkeys(
            f"{schedule.step[wait.step].node}{' of all ranks' if wait.everywhere else ''}"
            for piece in pieces
            for wait in piece.waits
        )
        rows.append((node, first.lane, cut, str(first.impl), str(first.sms or "any"), ", ".join(waits) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in (*widths, len(rows[0][-1]))), *lines[1:]]


def lane_lines(schedule: Schedule) -> list[str]:
    """One line per lane: what it is."""
    found = []
    for lane in schedule.lanes:
        if lane.name == "compute":
            what = "the caller's CUDA stream"
        elif lane.role == "host":
            what = "the host itself: it waits"
        else:
            what = f"a CUDA stream of priority {lane.priority}"
        found.append(f"{lane.name}: {what}")
    return found
