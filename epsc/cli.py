"""The command line. Everything here parses arguments, calls the driver and prints; nothing here decides.

Exit codes: 0 done; 1 the input is wrong (one message for each fault); 2 the command line is wrong; 3 a program that was
started failed or its check did; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

from epsc import driver, plans
from epsc.commands import lsp
from epsc.commands.options import compile_options, file_argument, fits, here, options_of, schedule_option, warn_of_size
from epsc.commands.report import EXIT_INPUT, EXIT_PROGRAM, count, report
from epsc.ir.errors import Diagnostic, EpsError
from epsc.passes.pipeline import GRAPH_PASSES, PIPELINE, SAID_PASSES

EPILOG = """Exit codes: 0 done; 1 the input is wrong; 2 the command line is wrong; 3 a program that was started failed
its check or broke; 130 interrupted."""


def main() -> None:
    """Entry point of the `epsc` command."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except EpsError as error:
        report(error.diagnostics)
        sys.exit(EXIT_INPUT)
    except OSError as error:
        # Files are looked after where they are read and written: what is left is a full disk behind stdout.
        click.echo(f"error: cannot print: {error.strerror or error}", err=True)
        sys.exit(EXIT_INPUT)


IN_MODULES = ("bench", "calibrate", "compare", "diff", "explain", "inspect", "trace", "tune")
"""Commands in modules of their own, each loaded when it is asked for: `epsc check` answers at once."""


class _Commands(click.Group):
    """Commands whose reader may leave early, as in `epsc inspect ... | head`: no fault, though click exits with 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *IN_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in IN_MODULES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(f"epsc.commands.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Keep Python from complaining when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(driver.VERSION, prog_name="epsc")
def cli() -> None:
    """Compile Mixture-of-Experts layers into readable, proven, multi-stream programs.

    A .eps file says what a layer is, where it runs and how; epsc proves the schedule and writes one Python file that
    torchrun starts. Begin with `epsc demo`, or `epsc check examples/deepseek_v2.eps`.
    """


@cli.command()
@file_argument
@compile_options
@schedule_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder (or .py file) to write to; the current folder by default.",
)
@click.option("--plan", "plan_too", is_flag=True, help="Write the plan beside the program, as JSON.")
def compile(file: Path, schedule: str | None, output: Path, plan_too: bool, **given: Any) -> None:
    """Write the program of one schedule; of one that takes others by load, with all of their plans.

    Nothing is written unless the plan is proven and the program is whole.
    """
    layer = driver.understand(driver.read(file), options_of(given))
    made = plans.plans(layer, schedule)
    report((*layer.warnings, *made.warnings))
    program = plans.write(made)
    path = output if output.suffix == ".py" else output / f"{layer.graph.name}_{made.name}.py"
    driver.save(path, program.text)
    steps = " and ".join(str(len(part.schedule.steps)) for part in made.parts)
    click.echo(f"wrote {path} ({len(program.text.splitlines())} lines, {steps} steps)")
    nodes, ranks = layer.cluster.nodes, layer.cluster.node_ranks
    where = f"--nnodes {nodes} --nproc-per-node {ranks}" if nodes > 1 else f"--nproc-per-node {made.ranks}"
    click.echo(f"run it: torchrun {where} {path} --check --bench")
    if plan_too:
        from epsc.render.plan import plans_json  # noqa: PLC0415 - only here

        driver.save(path.with_suffix(".json"), plans_json([(part.layer.load, part.schedule) for part in made.parts]))
        click.echo(f"wrote {path.with_suffix('.json')}")


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@compile_options
@click.option("--json", "as_json", is_flag=True, help="Print diagnostics as JSON, as language servers publish them.")
def check(files: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Prove every schedule of each file: shapes, races, deadlock, SMs, buffers."""
    errors: list[Diagnostic] = []
    published = []
    for file in files:
        try:
            layer, proven, by_load = plans.check(driver.read(file), options_of(given))
        except EpsError as error:
            errors += error.diagnostics
            published.append(lsp.published(file, error.diagnostics))
            continue
        found = [each.warnings for each in proven] + [each.warnings for each in by_load]
        warnings = tuple(dict.fromkeys((*layer.warnings, *(w for each in found for w in each))))
        published.append(lsp.published(file, warnings))
        if not as_json:
            report(warnings)
            _proven(file, layer, proven, by_load)
    if as_json:
        click.echo(json.dumps(published, indent=2))
    else:
        report(tuple(errors))
    if errors:
        sys.exit(EXIT_INPUT)


def _proven(file: Path, layer: driver.Layer, proven: list[driver.Plan], by_load: list[plans.Plans]) -> None:
    for decl in layer.schedules:
        if decl.auto:
            how = "auto by tokens" if decl.by_tokens else "auto"
            click.echo(f"{file}: `{decl.name}` = {how} is chosen, and proven, when it is compiled")
    for made in by_load:
        click.echo(f"{file}: `{made.name}` takes {plans.told(made)}")
    for plan in proven:
        s = plan.schedule
        waits = sum(len(step.waits) for step in s.steps)
        click.echo(
            f"{file}: `{s.name}` is proven on {count(s.ranks, 'rank')}: {len(s.steps)} steps on {len(s.lanes)} lanes,"
            f" {count(waits, 'wait')}, {len(s.buffers)} buffers in {count(len(s.storages), 'storage')}"
        )


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit with 1 if a file would change.")
def fmt(files: tuple[Path, ...], only_check: bool) -> None:
    """Format .eps files in place; `-` reads standard input and prints."""
    from epsc.grammar import format_spec, parse  # noqa: PLC0415 - other commands do not format

    changed: list[str] = []
    for file in files:
        stdin = str(file) == "-"
        source = driver.decode("<stdin>", sys.stdin.buffer.read()) if stdin else driver.read(file)
        text = format_spec(parse(source))
        if stdin and not only_check:
            click.echo(text, nl=False)
        elif text != source.text:
            changed.append(source.name)
            if not only_check:
                driver.save(file, text)
    for name in changed:
        click.echo(f"{'would reformat' if only_check else 'reformatted'} {name}")
    if only_check and changed:
        sys.exit(EXIT_INPUT)


@cli.command()
def passes() -> None:
    """List the passes in their order, with their options and defaults (for -p)."""
    for each in PIPELINE:
        if each == PIPELINE[0]:
            click.echo("Spec -> Graph: build; then, on the Graph:")
        if each == PIPELINE[len(SAID_PASSES) + len(GRAPH_PASSES)]:
            click.echo("\nGraph -> Schedule, proven after each:")
        click.echo(f"\n{click.style(each.name, bold=True)}")
        for line in (type(each).__doc__ or "").strip().splitlines():
            click.echo(f"  {line.removeprefix('    ')}" if line.strip() else "")
        for f in fields(each):
            default = "" if f.default is MISSING else f" (default {str(f.default).lower() or 'none'})"
            click.echo(f"    option {f.name}: {f.type}{default}: {_field_doc(type(each), f.name)}")


def _field_doc(cls: type, name: str) -> str:
    """The string under a field, which Python drops: read from the source."""
    import ast  # noqa: PLC0415 - only to list options
    import inspect as python_inspect  # noqa: PLC0415
    import textwrap  # noqa: PLC0415

    (definition,) = ast.parse(textwrap.dedent(python_inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id == name
        if is_field and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return " ".join(str(after.value.value).split())
    return ""


@cli.command(context_settings={"ignore_unknown_options": True})
@file_argument
@compile_options
@schedule_option
@click.option(
    "--nproc", type=click.IntRange(1), help="Ranks; all GPUs of this machine by default, else up to 4 on CPU."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the program in this folder.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    file: Path, schedule: str | None, nproc: int | None, keep: Path | None, arguments: tuple[str, ...], **given: Any
) -> None:
    """Compile for this machine and start the program under torchrun.

    ep is set to the number of ranks. ARGUMENTS go to the program: --check and --bench by default; others are
    --tokens N, --dtype fp32, --trace FILE, --iters N (see `python PROGRAM --help`).
    """
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs

    source = driver.read(file)
    ranks = nproc or launch.default_ranks(lambda n: fits(source, given, n))
    layer = driver.understand(source, options_of(given, here(source, given, ranks)))
    made = plans.plans(layer, schedule)
    report((*layer.warnings, *made.warnings))
    warn_of_size(layer.spec, given["preset"])
    # To stderr, and at once: starting torch on every rank takes a while, and says nothing.
    click.echo(f"starting {count(ranks, 'rank')} of `{made.name}` under torchrun ...", err=True)
    code = launch.run(plans.write(made), ranks, list(arguments) or ["--check", "--bench"], keep)
    if code:
        click.echo(f"the program failed (exit code {code})", err=True)
        sys.exit(EXIT_PROGRAM)


@cli.command()
@click.option(
    "--nproc",
    type=click.IntRange(1),
    help="Ranks; as many GPUs of this machine as can share the experts, else 4 on CPU.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the programs in this folder.")
def demo(nproc: int | None, keep: Path | None) -> None:
    """The main job: DeepSeek-V2's MoE layer, compiled, run on what is there, compared with the reference."""
    from epsc import demo as the_demo  # noqa: PLC0415 - starts programs

    sys.exit(the_demo.main(nproc, keep))


if __name__ == "__main__":
    main()
