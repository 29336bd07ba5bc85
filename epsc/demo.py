"""`epsc demo`: the main job on whatever is there. DeepSeek-V2's layer, three schedules, run and compared."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path

import click

from epsc import driver, launch
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from epsc.machine.simulate import simulate
from epsc.render.gantt import gantt

SCHEDULES = ("serial", "eps", "one_sided")
CAPTURED = ("one_sided",)
"""Those that can be CUDA graphs, and on GPUs are."""
GPU_TOKENS = 4096


def main(nproc: int | None, keep: Path | None) -> int:
    """Compile, run, check and time; print the timelines and a table. The exit code: 0, or 3 when a check failed."""
    found = launch.gpus()
    source = _example()
    preset = None if found else "small"
    ranks = nproc or launch.default_ranks(lambda n: _shared_by(source, preset, n))
    where = f"{ranks} GPUs" if found else f"{ranks} CPU ranks over gloo, at small size"
    click.echo(f"DeepSeek-V2's MoE layer on {where}\n")
    defines = {"ep": str(ranks)} | ({"tokens": str(GPU_TOKENS)} if found else {})
    options = driver.Options(defines, preset=preset)
    layer = driver.understand(source, options)
    rows = []
    with tempfile.TemporaryDirectory(prefix="epsc-demo-") as scratch:
        for name in SCHEDULES:
            plan = driver.plan(layer, name)
            timeline = simulate(plan.schedule, layer.cluster, layer.load[1])
            click.echo(f"{gantt(timeline, 100, False)}\n")
            program = driver.write(plan)
            result = Path(scratch) / f"{name}.json"
            dtype = "bf16" if found else "fp32"
            arguments = ["--check", "--bench", "--dtype", dtype, "--tokens", str(layer.load[1]), "--json", str(result)]
            if found and name in CAPTURED:
                arguments.append("--graph")
            if launch.run(program, ranks, arguments, keep):
                click.echo(f"`{name}` failed", err=True)
                return 3
            rows.append((name, json.loads(result.read_text(encoding="utf-8")), timeline.total))
            click.echo("")
    click.echo(f"{'schedule':<10} {'measured ms':>12} {'p10':>9} {'p90':>9} {'relative error':>15}")
    for name, measured, _ in rows:
        bench, error = measured["bench"], measured["check"]["relative_error"]
        click.echo(
            f"{name:<10} {bench['median_ms']:>12.3f} {bench['p10_ms']:>9.3f} {bench['p90_ms']:>9.3f} {error:>15.1e}"
        )
    if found:
        click.echo("\nThe timelines above are predictions for the cluster of the file.")
    else:
        click.echo(
            "\nThe timelines above are predictions for H200 GPUs. CPU ranks that share cores show that the program is"
            "\nright, not that it is fast."
        )
    return 0


def _shared_by(source: Source, preset: str | None, ranks: int) -> bool:
    """Whether the experts can be shared by so many ranks: those of 6 GPUs not by all of them."""
    try:
        driver.understand(source, driver.Options({"ep": str(ranks)}, preset))
    except EpsError:
        return False
    return True


def _example() -> Source:
    """The example that every install of epsc carries."""
    path = files("epsc.examples") / "deepseek_v2.eps"
    return Source("deepseek_v2.eps", path.read_text(encoding="utf-8"))
