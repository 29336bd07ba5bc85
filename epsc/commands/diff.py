"""`epsc diff`: two schedules or two runs, op by op."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from epsc import driver
from epsc.commands.options import compile_options, options_of
from epsc.commands.report import report
from epsc.ir.errors import Diagnostic, EpsError
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@compile_options
@click.option("--html", type=click.Path(path_type=Path), help="Write both as a page, one below the other.")
def diff(a: str, b: str, html: Path | None, **given: Any) -> None:
    """Compare two schedules or two runs, op by op.

    A and B are each FILE.eps:SCHEDULE, a JSON plan (`epsc inspect --json`) or a trace (a program's --trace); :SCHEDULE
    is one of A's file. A plan does not say its machine and load: with --profile and -D tokens=N it has times, too.
    """
    from epsc.render.differences import differences  # noqa: PLC0415 - as the other commands

    file = a.rpartition(":")[0] if ":" in a else a
    sides = [_side(what if not what.startswith(":") else f"{file}{what}", given) for what in (a, b)]
    click.echo(differences(*sides))
    if html:
        from epsc.render.html import page  # noqa: PLC0415

        driver.save(html, page(f"{sides[0].name} and {sides[1].name}", sides, differences(*sides)))
        click.echo(f"\nwrote {html}")


def _side(what: str, given: dict[str, Any]) -> Any:
    from epsc.commands import pictures  # noqa: PLC0415 - as the other commands

    if what.endswith(".json"):
        return _from_json(Path(what), given)
    name, _, schedule = what.rpartition(":") if ":" in what else (what, "", "")
    layer = driver.understand(driver.read(Path(name)), options_of(given))
    plan = driver.plan_at(layer, schedule or None, layer.load[1])
    report((*layer.warnings, *plan.warnings))
    return pictures.side(plan)


def _from_json(path: Path, given: dict[str, Any]) -> Any:
    from epsc.render.html import Side  # noqa: PLC0415
    from epsc.render.measured import is_trace, measured  # noqa: PLC0415
    from epsc.render.plan import plan_parse  # noqa: PLC0415

    text = driver.read(path).text
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise EpsError(Diagnostic("not-json", f"{path}:{error.lineno}:{error.colno}: {error.msg}")) from None
    if is_trace(data):
        return Side(path.name, measured=measured(str(path), text))
    schedule = plan_parse(text, str(path))
    tokens = options_of(given).defines.get("tokens", "")
    if not given["profile"] or not tokens.isdecimal():
        return Side(path.name, schedule)
    cluster = Cluster.make("plan", "", schedule.ep, profile=given["profile"])
    return Side(path.name, schedule, (simulate(schedule, cluster, int(tokens)),))
