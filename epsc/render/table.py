"""Graphs and Schedules as aligned plain text, one line per op or step."""

from __future__ import annotations

from collections.abc import Sequence

from epsc.ir.graph import Graph, places_of
from epsc.ir.places import named, short_names
from epsc.ir.schedule import Schedule, Step
from epsc.ir.text import attrs_text
from epsc.machine.balanced import region
from epsc.machine.timeline import Timeline
from epsc.render.amounts import amount, duration, whose

_NUMBERS = frozenset(
    {
        *("#", "SMs", "rows", "moved", "FLOP", "starts", "takes", "A", "B", "B - A"),
        *(
            "predicted",
            "measured",
            "error",
            "exposed",
            "hidden",
            "sent",
            "from host",
            "weights read",
            "weights held",
            "buffers",
        ),
        *("launches", "roundings"),
    }
)
"""Columns that are aligned to the right."""


def graph_table(graph: Graph) -> str:
    """Every op: what it reads, what it makes, its settings and weights."""
    rows = [
        (
            node.name,
            node.kind,
            ", ".join(node.ins),
            " | ".join(str(graph.types[out]) for out in node.outs),
            ", ".join(node.params),
            attrs_text(node.attrs),
        )
        for node in graph.nodes
    ]
    inputs = ", ".join(f"{name}: {graph.types[name]}" for name in graph.inputs)
    head = f"{graph.name}({inputs}) -> {', '.join(graph.results)}"
    return f"{head}\n\n{aligned(('op', 'kind', 'reads', 'makes', 'weights', 'settings'), rows)}"


def schedule_table(schedule: Schedule, timeline: Timeline | None = None) -> str:
    """Every step in the order of issue: where it runs and what it waits for.

    Without a timeline, sizes are symbols. With one, they are numbers for its load, and predicted times stand beside
    them; `moved` is what a transfer sends to other ranks, or what another step reads and writes in device memory.
    """
    head = f"{schedule.name}: ep {schedule.ep}, {schedule.chip_sms} SMs, {schedule.stage.name.lower()}"
    if timeline:
        head += f"; at {timeline.load} tokens per rank{whose(timeline)} {duration(timeline.total)}"
        titles = [*_TITLES, "rows", "moved", "FLOP", "starts", "takes", "waits for"]
    else:
        titles = [*_TITLES, "makes", "waits for"]
    # Only of a layer that was read from Python.
    short = short_names(places_of(*schedule.graph.nodes))
    if short:
        titles.append("Python")
    rows = [
        (
            str(number),
            step.key,
            timeline.event[step.key].impl if timeline else str(step.impl),
            step.lane or "-",
            str(step.sms) if step.sms else "-",
            step.comm or "-",
            *(_predicted(step, timeline) if timeline else (_made(step, schedule),)),
            _waits(step),
            *([named(short[place] for place in schedule.node(step).places) or "-"] if short else ()),
        )
        for number, step in enumerate(schedule.steps)
    ]
    return f"{head}\n\n{aligned(titles, rows)}"


_TITLES = ("#", "step", "implementation", "lane", "SMs", "comm")


def _predicted(step: Step, timeline: Timeline) -> tuple[str, ...]:
    event = timeline.event[step.key]
    moved = event.work.link_bytes or event.work.hbm_bytes
    return (
        f"{event.work.rows:.0f}" if event.work.rows else "-",
        amount(moved, "B"),
        amount(event.work.flops),
        duration(event.start),
        duration(event.seconds),
    )


def _made(step: Step, schedule: Schedule) -> str:
    return " | ".join(str(region(ref, schedule)) for ref in step.writes) or "-"


def _waits(step: Step) -> str:
    """`sent.permute (raw), r (r.weights raw)`: the value is named where the step is not."""
    return (
        ", ".join(
            f"{wait.step} ({wait.hazard})"
            if wait.value == wait.step.partition("[")[0]
            else f"{wait.step} ({wait.value} {wait.hazard})"
            for wait in step.waits
        )
        or "-"
    )


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart; no spaces at the ends of lines."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if title in _NUMBERS else cell.ljust(width)
            for title, cell, width in zip(titles, cells, widths, strict=True)
        ).rstrip()

    return "\n".join([line(titles), "  ".join("-" * width for width in widths), *map(line, rows)])
