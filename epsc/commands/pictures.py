"""Plans and traces as pages: what a picture shows is gathered here, and drawn by `epsc.render`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from epsc import driver
from epsc.ir.source import Source
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline
from epsc.render.gantt import gantt
from epsc.render.html import Side, loads_between, page
from epsc.render.measured import Measured, measured
from epsc.render.perfetto import perfetto


def read_trace(path: Path, plan: driver.Plan | None = None) -> Measured:
    """The trace in a file; of that plan, if one is given. Raises EpsError."""
    return measured(str(path), driver.read(path).text, plan.schedule if plan else None)


def predicted(plan: driver.Plan) -> tuple[Timeline, ...]:
    """The plan's timeline at several loads of its range, the highest last."""
    return tuple(simulate(plan.schedule, plan.layer.cluster, load) for load in loads_between(*plan.layer.load))


def side(plan: driver.Plan, run: Measured | None = None) -> Side:
    name = plan.schedule.name
    program = Source(f"{plan.schedule.graph.name}_{name}.py", driver.write(plan).text)
    return Side(name, plan.schedule, predicted(plan), run, program, (plan.layer.source,))


def html(plans: Sequence[driver.Plan], run: Measured | None = None) -> str:
    """A page of plans of one layer, with a run of the first."""
    sides = [side(plan, run if i == 0 else None) for i, plan in enumerate(plans)]
    title = f"{plans[0].schedule.graph.name}: {' and '.join(each.name for each in sides)}"
    return page(title, sides, "\n\n".join(gantt(each.predicted[-1]) for each in sides))


def trace(plan: driver.Plan, run: Measured | None = None) -> str:
    """The prediction at the highest load, and a run, in Chrome's trace format."""
    timeline = simulate(plan.schedule, plan.layer.cluster, plan.layer.load[1])
    return json.dumps(perfetto(plan.schedule, timeline, run), separators=(",", ":")) + "\n"
