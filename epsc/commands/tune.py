"""`epsc tune`: measure the plans that are predicted best on this machine, and keep the winner."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from epsc import driver, lock, plans
from epsc.commands.options import compile_options, file_argument, fits, here, options_of, warn_of_size
from epsc.commands.report import EXIT_PROGRAM, count, report
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.spec import ScheduleDecl
from epsc.passes.auto import search

LEAST_NOISE = 0.02
"""Medians that differ by less are taken for equal, however quiet a machine seems."""
ROUNDS = 2
"""Each program is measured so often, in an order that turns round, so that a drift hits all."""

Measure = Callable[[driver.Plan, int], dict[str, Any]]
"""A plan at a load: what its program wrote with --bench --json."""


@dataclass(frozen=True)
class Result:
    """What was measured of one schedule at one load."""

    decl: ScheduleDecl
    predicted_ms: float
    medians: tuple[float, ...]
    """Milliseconds, one for each round."""

    @property
    def ms(self) -> float:
        return sum(self.medians) / len(self.medians)

    @property
    def noise(self) -> float:
        return max(self.medians) / min(self.medians) - 1


@click.command()
@file_argument
@compile_options
@click.option(
    "--nproc", type=click.IntRange(1), help="Ranks; all GPUs of this machine by default, else up to 4 on CPU."
)
@click.option("-s", "--schedule", metavar="NAME", help="Tune for the loads at which this schedule asks `auto`.")
@click.option("--tokens", metavar="N[,N...]", help="Tokens per rank to tune for; the file's highest load by default.")
@click.option("--best", type=click.IntRange(1), default=4, show_default=True, help="Plans to measure besides serial.")
@click.option("--iters", type=click.IntRange(15), default=30, show_default=True, help="Iterations of each measurement.")
@click.option("--timeout", type=float, default=300, show_default=True, help="Seconds for one program.")
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="The lock file; FILE.lock by default.")
def tune(
    file: Path,
    nproc: int | None,
    schedule: str | None,
    tokens: str | None,
    best: int,
    iters: int,
    timeout: float,
    lock_file: Path | None,
    **given: Any,
) -> None:
    """Measure the plans predicted best on this machine, and keep the winner for `auto`.

    Serial is always measured, and wins unless something is faster by more than the noise. What was measured is written
    to a lock file beside FILE, which `schedule NAME = auto` then takes its schedule from, for the same layer, device,
    ranks and load (up to a power of two). With -s NAME that is done for each load at which a schedule by load asks
    `auto`.
    """
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs

    source = driver.read(file)
    ranks = nproc or launch.default_ranks(lambda n: fits(source, given, n))
    # Without GPUs the plan must be one for CPU ranks, whatever cluster the file speaks of.
    place = (*here(source, given, ranks), *(() if launch.gpus() else ("device=cpu",)))
    path = lock_file or lock.path_of(source)
    lock.load(path)  # a file that is no lock file is better refused before than after
    failed = False
    loads = _loads(tokens)
    if schedule is not None:
        if tokens is not None:
            raise click.UsageError("--schedule says for which loads to tune, and so does --tokens: give one of them")
        loads = [*plans.loads_of_auto(driver.understand(source, options_of(given, place)), schedule)]
    for load in loads:
        more = (f"tokens={load}",) if load is not None else ()
        layer = driver.understand(source, options_of(given, (*place, *more)))
        report(layer.warnings)
        if load == loads[0]:
            warn_of_size(layer.spec, given["preset"])
        measured = tune_layer(layer, best, lambda plan, n: _measure(plan, n, iters, timeout), click.echo)
        if measured is None:
            failed = True
            continue
        driver.save(path, lock.with_entry(path, measured))
        click.echo(f"kept in {path}")
    if failed:
        raise SystemExit(EXIT_PROGRAM)


def _loads(tokens: str | None) -> list[int | None]:
    if tokens is None:
        return [None]
    try:
        found: list[int | None] = [int(part) for part in tokens.split(",")]
    except ValueError:
        raise click.UsageError(f"--tokens takes whole numbers, not {tokens}") from None
    if min(n or 0 for n in found) < 1:
        raise click.UsageError("--tokens takes numbers of at least 1")
    return found


def tune_layer(layer: driver.Layer, best: int, measure: Measure, say: Callable[[str], None]) -> lock.Entry | None:
    """What is to be kept for a layer at its highest load; None when serial cannot be measured."""
    load, ep, device = layer.load[1], layer.cluster.mesh.ep, layer.cluster.device
    _, asked = search(layer.said, layer.graph, layer.numbers, layer.cluster, load, layer.options.pipeline)
    chosen = [asked[0], *sorted(asked[1:], key=lambda c: c.seconds)[:best]]
    say(
        f"{layer.graph.name}, {load} tokens per rank on {count(ep, 'rank')} ({device.name}):"
        f" {count(len(chosen), 'plan')} of {len(asked)} to measure, {ROUNDS} times each"
    )
    plans = {c.decl.name: driver.plan_as(layer, c.decl) for c in chosen}
    medians: dict[str, list[float]] = {name: [] for name in plans}
    found: dict[str, Any] = {}
    for turn in range(ROUNDS):
        for name in list(plans)[:: 1 if turn % 2 == 0 else -1]:
            if len(medians[name]) < turn:
                continue  # it failed before
            try:
                found = measure(plans[name], load)
                medians[name].append(float(found["bench"]["median_ms"]))
                say(f"  {name:<28}{medians[name][-1]:9.3f} ms")
            except EpsError as error:
                say(f"  {name:<28}failed: {error.diagnostics[0].message}")
    results = [
        Result(c.decl, c.seconds * 1e3, tuple(medians[c.decl.name]))
        for c in chosen
        if len(medians[c.decl.name]) == ROUNDS
    ]
    if not results or results[0].decl.name != "serial":
        say("serial could not be measured, so nothing is kept")
        return None
    return _kept(layer, results, found, say)


def winner(results: list[Result]) -> tuple[Result, float]:
    """The fastest, but serial (the first) unless that is beaten by more than the noise of the two; and that noise."""
    fastest = min(results, key=lambda result: result.ms)
    noise = max(LEAST_NOISE, fastest.noise, results[0].noise)
    return (fastest if fastest.ms < results[0].ms * (1 - noise) else results[0]), noise


def _kept(layer: driver.Layer, results: list[Result], found: dict[str, Any], say: Callable[[str], None]) -> lock.Entry:
    won, noise = winner(results)
    serial, load = results[0], layer.load[1]
    for result in sorted(results, key=lambda result: result.ms):
        off = result.predicted_ms / result.ms - 1
        say(f"{result.decl.name:<30}{result.ms:9.3f} ms   predicted {result.predicted_ms:.3f} ({off:+.0%})")
    if won is serial:
        say(f"serial wins: nothing is faster than it by more than the noise, {noise:.1%}")
    else:
        say(f"{won.decl.name} wins: {serial.ms / won.ms:.2f} times as fast as serial, the noise is {noise:.1%}")
    layer_key = lock.Key.of(layer.said, layer.cluster.device.name, layer.cluster.mesh.ep, load)
    return lock.Entry(
        key=layer_key,
        schedule=lock.text_of(replace(won.decl, name="tuned")),
        tokens=load,
        milliseconds={result.decl.name: round(result.ms, 4) for result in results},
        noise=round(noise, 4),
        hardware=f"{layer.cluster.mesh.ep} ranks, {_hardware(str(found.get('device', '')))}",
        versions={"epsc": driver.VERSION, "torch": metadata.version("torch")},
        date=datetime.now(UTC).date().isoformat(),
    )


def _hardware(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name())


def _measure(plan: driver.Plan, tokens: int, iters: int, timeout: float) -> dict[str, Any]:
    """Start the program of a plan as `epsc run` does; what it found. Raises EpsError when it fails."""
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs

    with tempfile.TemporaryDirectory(prefix="epsc-tune-") as scratch:
        path, out = Path(scratch) / f"{plan.schedule.name}.py", Path(scratch) / "found.json"
        driver.save(path, driver.write(plan).text)
        ranks = plan.schedule.ep
        command = [*launch.torchrun(ranks), str(path), "--bench", "--tokens", str(tokens)]
        command += ["--iters", str(iters), "--json", str(out)]
        try:
            done = subprocess.run(
                command, env=launch.environment(ranks), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise EpsError(Diagnostic("program-failed", f"it was not done after {timeout:g} seconds")) from None
        if done.returncode or not out.exists():
            said = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
            why = said[0] if said else f"exit code {done.returncode}"
            raise EpsError(Diagnostic("program-failed", why))
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
