"""`epsc inspect`: a layer, its schedule and its predicted timeline as tables, texts, pictures and traces."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from epsc import driver, plans
from epsc.commands.options import compile_options, file_argument, options_of
from epsc.commands.report import report
from epsc.plans import plans as plans_of

_FORMS = {"as_json": "--json", "as_dot": "--dot", "as_svg": "--svg", "show_plan": "--plan"}
"""Of these only one can be printed."""
_GRAPHS = (["as_dot", "show_graph"], ["as_svg", "show_graph"])
"""Here the sheet says of what."""
_TIMELESS = {"as_json", "as_dot", "show_plan", "show_graph"}
_SHEETS = {"show_graph": "--graph", "show_steps": "--steps", "show_gantt": "--gantt"}


@click.command()
@file_argument
@compile_options
@click.option(
    "-s",
    "--schedule",
    "schedules",
    metavar="NAME",
    multiple=True,
    help="The schedule to use; the file's first by default. Repeatable: one below the other on one time axis.",
)
@click.option("--graph", "show_graph", is_flag=True, help="The dataflow graph only.")
@click.option("--steps", "show_steps", is_flag=True, help="The table of steps only.")
@click.option("--gantt", "show_gantt", is_flag=True, help="The predicted timeline only.")
@click.option("--plan", "show_plan", is_flag=True, help="The Schedule as text that parses back.")
@click.option("--json", "as_json", is_flag=True, help="The Schedule as a JSON plan.")
@click.option("--dot", "as_dot", is_flag=True, help="The schedule as a Graphviz graph; with --graph, the dataflow.")
@click.option("--svg", "as_svg", is_flag=True, help="The timeline as an SVG picture; with --graph, the dataflow.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to look at in a browser, from disk.")
@click.option("--perfetto", type=click.Path(path_type=Path), help="Write the prediction as a trace for Perfetto.")
@click.option(
    "--measured", type=click.Path(path_type=Path), help="What the program wrote with --trace FILE, beside it."
)
@click.option(
    "--skew",
    type=click.FloatRange(1),
    help="Rows of rank 0 over the mean, for timelines; alike by default.",
)
@click.option("--at", type=click.IntRange(0), metavar="TOKENS", help="Of plans by load the one for so many tokens.")
@click.option("--width", type=click.IntRange(40, 1000), help="Columns of the timeline; the terminal's by default.")
def inspect(file: Path, schedules: tuple[str, ...], at: int | None, width: int | None, **given: Any) -> None:
    """Show the graph, the schedule as a table, and its predicted timeline with lanes as rows.

    Of a schedule that takes others by load, all plans, one after the other. With --skew there is a timeline of rank 0,
    which has more rows than the mean, and one of all others, which share what is left; the table is of rank 0.
    """
    _refuse_two_views(given, schedules)
    layer = driver.understand(driver.read(file), options_of(given))
    if at is not None:
        plans.expect_by_load(layer, schedules or (None,), at)
    made = [plans_of(layer, name) for name in dict.fromkeys(schedules)] or [plans_of(layer)]
    report(tuple(dict.fromkeys((*layer.warnings, *(w for each in made for w in each.warnings)))))
    if given["as_json"] and at is None:
        click.echo(_json(made[0]), nl=False)
        return
    shown = [part for each in made for part in (each.parts if at is None else [each.at(at)])]
    if len(shown) > 1 and (form := next((name for name in (*_FORMS, "perfetto", "measured") if given[name]), "")):
        option = _FORMS.get(form, f"--{form}")
        raise click.UsageError(f"{option} takes one plan, and there are {plans.told(made[0])}: give --at TOKENS")
    if not _write_pictures(shown, given, [each for each in made if at is None and len(each.parts) > 1]):
        asked = any(given[name] for name in _FORMS)
        heads = [_head(each, part, asked) for each in made for part in each.parts if part in shown]
        texts = [_printed(plan, width, given).rstrip("\n") for plan in shown]
        click.echo("\n\n".join(f"{head}{text}" for head, text in zip(heads, texts, strict=True)))


def _head(made: plans.Plans, part: driver.Plan, asked: bool) -> str:
    """What is said above one of several plans; nothing where one form is asked for."""
    if len(made.parts) == 1 or asked:
        return ""
    return f"{made.name}, {plans.loads(part)} on the rank that has most: {part.schedule.name}\n\n"


def _json(made: plans.Plans) -> str:
    from epsc.render.plan import plans_json  # noqa: PLC0415 - as below

    return plans_json([(part.layer.load, part.schedule) for part in made.parts])


def _refuse_two_views(given: dict[str, Any], schedules: tuple[str, ...]) -> None:
    """Sheets are shown together; of other forms only one can be, and what was asked besides would be dropped."""
    asked = [name for name in (*_FORMS, *_SHEETS) if given[name]]
    if any(name in _FORMS for name in asked) and len(asked) > 1 and asked not in _GRAPHS:
        names = " and ".join((_FORMS | _SHEETS)[name] for name in asked)
        raise click.UsageError(f"{names} do not go together: ask for one at a time")
    if any(name in _FORMS for name in asked) and len(set(schedules)) > 1:
        raise click.UsageError(f"{_FORMS[asked[0]]} shows one schedule: give one -s")
    if _files(given) and asked:
        raise click.UsageError(f"{(_FORMS | _SHEETS)[asked[0]]} is printed, and {_files(given)[0]} writes a file")
    timeless = [name for name in asked if name in _TIMELESS]
    if given["skew"] and timeless and not {"show_steps", "show_gantt"} & set(asked):
        raise click.UsageError(f"--skew is about times, and {(_FORMS | _SHEETS)[timeless[0]]} shows none")
    if given["measured"] and not _files(given):
        raise click.UsageError("--measured is shown in what --html and --perfetto write")
    if given["perfetto"] and len(set(schedules)) > 1:
        raise click.UsageError("--perfetto traces one schedule: give one -s")
    if given["measured"] and len(set(schedules)) > 1:
        raise click.UsageError("--measured holds a run of one schedule: give one -s, or use `epsc diff`")


def _files(given: dict[str, Any]) -> list[str]:
    """The options that write a file instead of printing."""
    return [f"--{name}" for name in ("html", "perfetto") if given[name]]


def _write_pictures(shown: list[driver.Plan], given: dict[str, Any], by_load: list[plans.Plans]) -> bool:
    """Write the files that were asked for; whether there were any. `by_load`: what several of them are the plans of."""
    from epsc.commands import pictures  # noqa: PLC0415 - pictures are not needed to print

    run = pictures.read_trace(given["measured"], shown[0]) if given["measured"] else None
    if given["html"]:
        driver.save(given["html"], pictures.html(shown, run, given["skew"] or 1.0, by_load))
        click.echo(f"wrote {given['html']}")
    if given["perfetto"]:
        driver.save(given["perfetto"], pictures.trace(shown[0], run, given["skew"] or 1.0))
        click.echo(f"wrote {given['perfetto']}: open it in https://ui.perfetto.dev")
    return bool(_files(given))


def _printed(plan: driver.Plan, width: int | None, given: dict[str, Any]) -> str:
    from epsc.commands.pictures import at_load  # noqa: PLC0415 - pictures are not needed to compile
    from epsc.render.dot import graph_dot, schedule_dot  # noqa: PLC0415
    from epsc.render.gantt import gantt  # noqa: PLC0415
    from epsc.render.plan import plan_json  # noqa: PLC0415
    from epsc.render.svg import reason, timelines_svg  # noqa: PLC0415
    from epsc.render.svg_graph import graph_svg  # noqa: PLC0415
    from epsc.render.table import graph_table, schedule_table  # noqa: PLC0415

    schedule = plan.schedule
    if given["as_json"]:
        return plan_json(schedule)
    if given["as_dot"]:
        return graph_dot(schedule.graph) if given["show_graph"] else schedule_dot(schedule)
    if given["show_plan"]:
        return str(schedule)
    if given["as_svg"] and given["show_graph"]:
        return graph_svg(schedule.graph)
    colour = sys.stdout.isatty()
    columns = width or (shutil.get_terminal_size((100, 40)).columns if colour else 100)
    timelines = at_load(plan, plan.layer.load[1], given["skew"] or 1.0)
    if given["as_svg"]:
        return timelines_svg(timelines, why=[reason(timeline, schedule) for timeline in timelines])
    sheets = {
        "graph": lambda: graph_table(schedule.graph),
        "steps": lambda: schedule_table(schedule, timelines[0]),
        "gantt": lambda: "\n\n".join(gantt(timeline, columns, colour) for timeline in timelines),
    }
    wanted = [name for name in sheets if given[f"show_{name}"]] or list(sheets)
    return "\n\n".join(sheets[name]().rstrip() for name in wanted)
