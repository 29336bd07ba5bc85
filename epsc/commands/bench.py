"""`epsc bench`: the plans of a layer beside layers written by hand, measured on this machine."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from epsc import driver
from epsc.bench.loads import BY_HAND, TOKENS, WORKLOADS
from epsc.commands.options import compile_options, file_argument, fits, here, options_of, warn_of_size
from epsc.commands.report import EXIT_PROGRAM, count, report
from epsc.ir.errors import EpsError


@click.command()
@file_argument
@compile_options
@click.option(
    "-s",
    "--schedule",
    "schedules",
    multiple=True,
    metavar="NAME[:LET=N,...]",
    help="A schedule to measure, with a `let` replaced if said. Repeatable; by default all that are not auto.",
)
@click.option("--nproc", type=click.IntRange(1), help="Ranks; all GPUs by default, else up to 4 on CPU.")
@click.option("--tokens", metavar="N[,N...]", help="Tokens per rank; 1024,4096,8192, as far as the file has them.")
@click.option(
    "--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)), help="Repeatable; random by default."
)
@click.option("--rounds", type=click.IntRange(15), default=15, show_default=True, help="Rounds of each of two runs.")
@click.option("--forwards", type=click.IntRange(1), help="Soak: so many checked forwards instead of measuring.")
@click.option("--graph/--no-graph", default=True, help="Also run as CUDA graphs what can be captured; it does.")
@click.option("--kernels", is_flag=True, help="Profile the kernels at the largest load, for --json.")
@click.option(
    "--only", multiple=True, metavar="NAME[,NAME...]", help="Contenders; hand-a2a, hand-gather, hand-no-ep too."
)
@click.option("--budget", type=float, default=480, show_default=True, help="Seconds after which nothing is begun.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write everything that was found.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the programs in this folder.")
def bench(
    file: Path,
    schedules: tuple[str, ...],
    nproc: int | None,
    tokens: str | None,
    workloads: tuple[str, ...],
    only: tuple[str, ...],
    out: Path | None,
    keep: Path | None,
    **given: Any,
) -> None:
    """Measure plans of a layer beside layers written by hand.

    In one process group, on the same weights, inputs and routings: the plans, all2all expert parallelism (hand-a2a),
    all-gather and reduce-scatter (hand-gather), and no expert parallelism (hand-no-ep). Each output is compared with
    fp32 first. Contenders take turns; inputs rotate. A plan's transfers and its other steps are also run one by one,
    each alone (transfer, compute); hidden is (transfer + compute - together) / the shorter of the two.

    Whoever fails is left out and named, and the exit code is 3.
    """
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs
    from epsc.bench.programs import Wanted, compile_all  # noqa: PLC0415
    from epsc.bench.start import compare  # noqa: PLC0415
    from epsc.bench.table import table  # noqa: PLC0415

    source = driver.read(file)
    ranks = nproc or launch.default_ranks(lambda n: fits(source, given, n))
    options = options_of(given, here(source, given, ranks))
    layer = driver.understand(source, options)
    report(layer.warnings)
    warn_of_size(layer.spec, given["preset"])
    loads = _tokens(tokens) if tokens else _loads(layer.load)
    if max(loads) > layer.load[1]:
        most = f"the plans are made for at most {layer.load[1]}: give -D tokens={max(loads)} as well"
        raise click.UsageError(f"--tokens says {max(loads)}, but {most}")
    wanted = [Wanted.parse(text) for text in schedules]

    def refused(name: str, error: EpsError) -> None:
        if wanted:
            raise error
        report(error.diagnostics)
        click.echo(f"`{name}` is left out: it was refused", err=True)

    arguments = ["--tokens", *map(str, loads), "--workload", *(workloads or ("random",))]
    arguments += ["--rounds", str(given["rounds"]), "--graph" if given["graph"] else "--no-graph"]
    arguments += ["--forwards", str(given["forwards"])] if given["forwards"] else []
    arguments += ["--kernels"] if given["kernels"] else []
    names = [name for text in only for name in text.split(",")]
    arguments += ["--only", *names] if names else []
    with tempfile.TemporaryDirectory(prefix="epsc-bench-") as scratch:
        folder = keep or Path(scratch)
        made = compile_all(source, options, wanted or None, [ranks], folder, refused)
        known = [*BY_HAND, *(program["name"] for program in made)]
        if strangers := [name for name in names if name not in known]:
            raise click.UsageError(f"--only takes some of {', '.join(known)}, not {', '.join(strangers)}")
        click.echo(f"starting {count(ranks, 'rank')} under torchrun ...", err=True)
        found = compare(folder, ranks, arguments, out or Path(scratch) / "results.json", given["budget"])
    click.echo(table(found))
    if found["failed"]:
        sys.exit(EXIT_PROGRAM)


def _tokens(text: str) -> list[int]:
    pieces = text.split(",")
    if not all(piece.isdigit() and int(piece) for piece in pieces):
        raise click.UsageError(f"--tokens takes numbers of at least 1, with commas between them, not {text}")
    return [int(piece) for piece in pieces]


def _loads(load: tuple[int, int]) -> list[int]:
    """The usual loads, as far as the file plans for them; else the ends of its own."""
    return [n for n in TOKENS if load[0] <= n <= load[1]] or sorted(set(load))
