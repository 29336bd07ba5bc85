"""`epsc compare`: schedules of one layer beside each other, predicted and measured."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from epsc import driver
from epsc.commands.options import compile_options, fits, here, options_of
from epsc.commands.report import EXIT_PROGRAM, count, report
from epsc.grammar import parse
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.ir.same import unlike
from epsc.ir.source import Source
from epsc.ir.spec import Let, Preset
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline
from epsc.machine.totals import Totals, held_bytes, totals
from epsc.passes.numbers import CLUSTER_KEYS, LOAD_KEY


@dataclass(frozen=True)
class Entry:
    """One schedule that takes part."""

    name: str
    plan: driver.Plan
    timeline: Timeline
    totals: Totals


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE[:SCHEDULE]...")
@click.option(
    "-s", "--schedule", "schedules", multiple=True, metavar="NAME", help="Only schedules of this name; may be repeated."
)
@click.option("--on", type=click.Path(path_type=Path), help="Take the layer, cluster and load of this file instead.")
@compile_options
@click.option("--measure", is_flag=True, help="Also measure them on this machine, as `epsc bench` does.")
@click.option("--nproc", type=click.IntRange(1), help="Ranks to measure on; all GPUs by default, else up to 4 on CPU.")
@click.option(
    "--budget", type=float, default=480, show_default=True, help="Seconds after which no measurement is begun."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON: seconds and bytes.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write the timelines, above each other on one axis.")
def compare(
    files: tuple[str, ...],
    schedules: tuple[str, ...],
    on: Path | None,
    measure: bool,
    nproc: int | None,
    budget: float,
    as_json: bool,
    svg: Path | None,
    **given: Any,
) -> None:
    """Compare schedules of one layer: time, transfers, bytes, memory, launches, roundings.

    FILE means all of its schedules, FILE:NAME one. All are predicted for the cluster and the highest load of the first
    file, and must be of the same layer; with --on, the schedules alone are taken, for the layer of that file, whose
    ops must have the names that they speak of.
    """
    sources = [_source(text) for text in files]
    base = driver.read(on) if on else sources[0][0]
    extra: tuple[str, ...] = ()
    ranks = 0
    if measure:
        from epsc import launch  # noqa: PLC0415 - asks torch about GPUs

        ranks = nproc or launch.default_ranks(lambda n: fits(base, given, n))
        extra = here(base, given, ranks)
    elif nproc:
        raise click.UsageError("--nproc says on how many ranks to measure: give --measure as well")
    options = options_of(given, extra)
    _all_known([base, *(source for source, _ in sources)], options)
    entries = _entries(sources, base, on is not None, schedules, options)
    load = entries[0].timeline.load
    found = _measured(entries, ranks, load, budget) if measure else None
    click.echo(_json(entries, found) if as_json else _table(entries, found))
    if svg:
        from epsc.render.svg import reason, timelines_svg  # noqa: PLC0415

        why = [reason(each.timeline, each.plan.schedule) for each in entries]
        driver.save(svg, timelines_svg([replace(each.timeline, name=each.name) for each in entries], why=why))
        click.echo(f"wrote {svg}", err=as_json)
    if found and found["failed"]:
        sys.exit(EXIT_PROGRAM)


def _source(text: str) -> tuple[Source, str]:
    """A file, and the schedule that is named behind it or nothing."""
    path, colon, name = text.rpartition(":")
    return (driver.read(Path(path)), name) if colon and not Path(text).exists() else (driver.read(Path(text)), "")


def _own(source: Source, options: driver.Options) -> driver.Options:
    """The options as far as this file knows them: each names its numbers and presets itself."""
    lets, presets = _names(source)
    known = {*lets, *CLUSTER_KEYS, LOAD_KEY}
    defines = {name: value for name, value in options.defines.items() if name in known}
    return replace(options, defines=defines, preset=options.preset if options.preset in presets else None)


def _all_known(sources: list[Source], options: driver.Options) -> None:
    """Raise EpsError for a number or a preset that none of the files has."""
    names = [_names(source) for source in sources]
    lets = {name for own, _ in names for name in own} | {*CLUSTER_KEYS, LOAD_KEY}
    presets = {name for _, own in names for name in own}
    found = [
        Diagnostic(
            "unknown-name", f"`-D {name}` sets what no `let` of these files defines", help=did_you_mean(name, lets)
        )
        for name in options.defines
        if name not in lets
    ]
    if options.preset and options.preset not in presets:
        message = f"there is no preset `{options.preset}` in these files"
        found.append(Diagnostic("unknown-preset", message, help=did_you_mean(options.preset, presets)))
    if found:
        raise EpsError(*found)


def _names(source: Source) -> tuple[set[str], set[str]]:
    items = parse(source).items
    return {i.name for i in items if isinstance(i, Let)}, {i.name for i in items if isinstance(i, Preset)}


def _entries(
    sources: list[tuple[Source, str]], base: Source, other: bool, only: tuple[str, ...], options: driver.Options
) -> list[Entry]:
    """The plans, for the layer and the machine of `base`; `other`: whatever layers the files themselves have."""
    on = driver.understand(base, _own(base, options))
    report(on.warnings)
    plans: list[tuple[str, driver.Plan]] = []
    for source, named in sources:
        own = _own(source, options)
        # Of a file whose layer does not count, neither does the name of one.
        layer = (
            on
            if source == base
            else driver.understand(source, replace(own, layer=None, cluster=None) if other else own)
        )
        if not other and (why := unlike(on.said, layer.said)):
            what = f"`{layer.said.name}` of {source.name} is another layer than `{on.said.name}` of {base.name}: {why}"
            raise EpsError(Diagnostic("other-layer", what, help=f"its schedules alone are taken with --on {base.name}"))
        # The schedules are this file's, with its numbers; what they are for is the base's.
        placed = replace(on, spec=layer.spec, numbers=layer.numbers)
        for name in [named] if named else [decl.name for decl in layer.schedules]:
            if only and name not in only:
                continue
            try:
                plan = driver.plan_at(placed, name, placed.load[1])
            except EpsError as error:
                if named or only:
                    raise
                report(error.diagnostics)
                click.echo(f"`{name}` of {source.name} is left out: it was refused", err=True)
                continue
            report(plan.warnings)
            plans.append((source.name, plan))
    if missing := [name for name in only if name not in {plan.schedule.name for _, plan in plans}]:
        known = {decl.name for source, _ in sources for decl in parse(source).schedules}
        message = f"none of these files has a schedule `{missing[0]}`"
        raise EpsError(Diagnostic("unknown-schedule", message, help=did_you_mean(missing[0], known)))
    if not plans:
        raise EpsError(Diagnostic("nothing-to-compare", "no schedule is left"))
    often = Counter(plan.schedule.name for _, plan in plans)
    entries = []
    for file, plan in plans:
        schedule = plan.schedule
        name = schedule.name if often[schedule.name] == 1 else f"{Path(file).stem}:{schedule.name}"
        timeline = simulate(schedule, on.cluster, on.load[1])
        entries.append(Entry(name, plan, timeline, totals(schedule, timeline)))
    return entries


def _measured(entries: list[Entry], ranks: int, load: int, budget: float) -> dict[str, Any]:
    from epsc.bench.programs import write_plans  # noqa: PLC0415
    from epsc.bench.start import compare as run  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="epsc-compare-") as scratch:
        folder, names = Path(scratch), [each.name for each in entries]
        write_plans({each.name: each.plan for each in entries}, folder)
        click.echo(f"starting {count(ranks, 'rank')} under torchrun ...", err=True)
        arguments = ["--tokens", str(load), "--workload", "random", "--only", *names, "--no-graph"]
        found = run(folder, ranks, arguments, folder / "results.json", budget)
    for failure in found["failed"]:
        click.echo(f"{failure['name']} failed, {failure['where']}: {failure['reason'].splitlines()[-1]}", err=True)
    return found


def _contender(found: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    cells = found["cells"] if found else []
    return cells[0]["contenders"].get(name) if cells else None


def _table(entries: list[Entry], found: dict[str, Any] | None) -> str:
    from epsc.render.comparison import Line, comparison  # noqa: PLC0415 - as the other commands

    lines = []
    for each in entries:
        run = _contender(found, each.name)
        measured = (run["median"] / 1e3, run["error"]) if run else None
        lines.append(Line(each.name, each.totals, held_bytes(each.plan.schedule), measured))
    layer = entries[0].plan.layer
    head = (
        f"{layer.said.name}: {count(layer.cluster.mesh.ep, 'rank')} of {layer.cluster.device.name},"
        f" {entries[0].timeline.load} tokens per rank, routing balanced"
    )
    return f"{head}\n\n{comparison(lines, measured=found is not None)}"


def _json(entries: list[Entry], found: dict[str, Any] | None) -> str:
    layer = entries[0].plan.layer
    rows = []
    for each in entries:
        run = _contender(found, each.name)
        row = {"name": each.name, "file": Path(each.plan.layer.source.name).name, **asdict(each.totals)}
        row["held"] = held_bytes(each.plan.schedule)
        if found is not None:
            row["measured"] = run["median"] / 1e3 if run else None
            row["error"] = run["error"] if run else None
        rows.append(row)
    head = {"layer": layer.said.name, "device": layer.cluster.device.name, "ranks": layer.cluster.mesh.ep}
    return json.dumps({**head, "tokens": entries[0].timeline.load, "schedules": rows}, indent=2)
