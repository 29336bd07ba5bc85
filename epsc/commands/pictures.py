"""Plans and traces as pages: what a picture shows is gathered here, and drawn by `epsc.render`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from epsc import driver
from epsc.ir.source import Source
from epsc.machine.ranks import simulate_ranks, skewed
from epsc.machine.timeline import Timeline
from epsc.plans import Plans, write
from epsc.render.gantt import gantt
from epsc.render.html import Side, loads_between, page
from epsc.render.measured import Measured, measured
from epsc.render.perfetto import perfetto


def read_trace(path: Path, plan: driver.Plan | None = None) -> Measured:
    """The trace in a file; of that plan, if one is given. Raises EpsError."""
    return measured(str(path), driver.read(path).text, plan.schedule if plan else None)


def at_load(plan: driver.Plan, load: int, skew: float = 1.0) -> tuple[Timeline, ...]:
    """The plan's timeline, or that of each kind of rank if one has `skew` times the rows."""
    return simulate_ranks(plan.schedule, plan.layer.cluster, load, skewed(plan.schedule.ep, skew))


def predicted(plan: driver.Plan, skew: float = 1.0, loads: Sequence[int] = ()) -> tuple[Timeline, ...]:
    """The same at several loads of its range, the highest last; at those of `loads`, if they are said."""
    low, high = plan.layer.load
    own = [load for load in loads if low <= load <= high] or loads_between(low, high)
    return tuple(timeline for load in own for timeline in at_load(plan, load, skew))


def side(plan: driver.Plan, run: Measured | None = None, skew: float = 1.0, loads: Sequence[int] = ()) -> Side:
    name = plan.schedule.name
    program = Source(f"{plan.schedule.graph.name}_{name}.py", driver.write(plan).text)
    return Side(name, plan.schedule, predicted(plan, skew, loads), run, program, (plan.layer.source,))


def html(
    plans: Sequence[driver.Plan], run: Measured | None = None, skew: float = 1.0, by_load: Sequence[Plans] = ()
) -> str:
    """A page of plans of one layer, with a run of the first. `by_load`: what some of them are the plans of, by load."""
    loads = sorted({load for plan in plans for load in loads_between(*plan.layer.load)})
    sides = [side(plan, run if i == 0 else None, skew, loads) for i, plan in enumerate(plans)]
    for made in by_load:
        program = Source(f"{made.layer.graph.name}_{made.name}.py", write(made).text)
        for i, plan in enumerate(plans):
            if any(plan is part for part in made.parts):
                sides[i] = replace(sides[i], range=plan.layer.load, program=program)
    title = f"{plans[0].schedule.graph.name}: {' and '.join(each.name for each in sides)}"
    shown = [timeline for plan in plans for timeline in at_load(plan, plan.layer.load[1], skew)]
    return page(title, sides, "\n\n".join(map(gantt, shown)))


def trace(plan: driver.Plan, run: Measured | None = None, skew: float = 1.0) -> str:
    """The prediction at the highest load, and a run, in Chrome's trace format."""
    data = perfetto(plan.schedule, at_load(plan, plan.layer.load[1], skew), run)
    return json.dumps(data, separators=(",", ":")) + "\n"
