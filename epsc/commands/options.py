"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from epsc import driver
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.ir.spec import Preset, Spec
from epsc.passes.numbers import parse_defines
from epsc.passes.pipeline import PIPELINE, configured

F = TypeVar("F", bound=Callable[..., Any])


def file_argument(function: F) -> F:
    return click.argument("file", type=click.Path(path_type=Path))(function)


def compile_options(function: F) -> F:
    """Everything that changes what is compiled."""
    for option in reversed(
        (
            click.option(
                "-D",
                "--define",
                "defines",
                multiple=True,
                metavar="NAME=NUMBER",
                help="Replace a `let`, a cluster setting (ep, device) or the load (tokens). Repeatable.",
            ),
            click.option("--preset", metavar="NAME", help="Apply a preset of the file: several -D at once."),
            click.option("--layer", metavar="NAME", help="The layer to compile; the last of the file by default."),
            click.option("--cluster", metavar="NAME", help="The cluster to compile for; the file's first by default."),
            click.option(
                "--profile",
                metavar="FILE|NAME",
                help="A cluster profile for predictions, instead of the one shipped for the device.",
            ),
            click.option(
                "-p",
                "--passes",
                "pipeline",
                metavar='"PASS{option=value},..."',
                default="",
                help="Set options of passes; `epsc passes` lists them.",
            ),
            click.option("--print-after", metavar="PASS", help="Print the IR after a pass, or after every one: all."),
            click.option("--time", "timed", is_flag=True, help="Print the time of each pass."),
        )
    ):
        function = option(function)
    return function


def schedule_option(function: F) -> F:
    return click.option("-s", "--schedule", metavar="NAME", help="The schedule to use; the file's first by default.")(
        function
    )


def options_of(given: dict[str, Any], extra_defines: tuple[str, ...] = ()) -> driver.Options:
    names = [each.name for each in PIPELINE]
    wanted = given["print_after"]
    if wanted is not None and wanted not in (*names, "all"):
        raise click.UsageError(f"--print-after takes one of {', '.join(names)} or all, not {wanted}")

    def watch(name: str, made: Graph | Schedule, seconds: float) -> None:
        if given["timed"]:
            click.echo(f"{name:<14}{seconds * 1e3:8.2f} ms", err=True)
        if wanted in (name, "all"):
            click.echo(f"# after {name}\n{made}\n")

    watched = watch if given["timed"] or wanted else None
    defines = parse_defines(given["defines"]) | parse_defines(extra_defines)
    pipeline = configured(given["pipeline"])
    return driver.Options(
        defines, given["preset"], given["layer"], given["cluster"], pipeline, watched, given["profile"]
    )


def here(source: Source, given: dict[str, Any], ranks: int) -> tuple[str, ...]:
    """What `ranks` ranks of this machine define: they share the experts, on one node, unless told that it should count
    as several. Raises EpsError where they are no groups of the ranks that share each expert."""
    etp = driver.sharers(source, options_of({**given, "print_after": None, "timed": False}))
    if ranks % etp:
        message = f"{ranks} ranks are no groups of etp = {etp}, which share each expert"
        raise EpsError(Diagnostic("mesh", message, help=f"--nproc {etp * (ranks // etp + 1)}, or -D etp=1"))
    nodes = () if "nodes" in parse_defines(given["defines"]) else ("nodes=1",)
    return (f"ep={ranks // etp}", *nodes)


def warn_of_size(spec: Spec, preset: str | None) -> None:
    """Before something is run: say that it will take long where there are no GPUs and a preset would be smaller."""
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs

    presets = [item.name for item in spec.items if isinstance(item, Preset)]
    if presets and not preset and not launch.gpus():
        names = " or ".join(presets)
        click.echo(f"no GPU here: CPU ranks at true size take long; --preset {names} is smaller", err=True)


def fits(source: Source, given: dict[str, Any], ranks: int) -> bool:
    """Whether the layer can be shared by so many ranks."""
    try:
        driver.understand(
            source, options_of({**given, "print_after": None, "timed": False}, here(source, given, ranks))
        )
    except EpsError:
        return False
    return True
