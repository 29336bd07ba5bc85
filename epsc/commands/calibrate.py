"""`epsc calibrate`: measure this machine, and write its cluster profile."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from epsc import driver
from epsc.commands.report import EXIT_PROGRAM
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.machine.cluster import DEVICES
from epsc.machine.profile import parse


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The profile to write.")
@click.option("--device", metavar="NAME", help="What a cluster calls it; from the name of the GPU by default, or cpu.")
@click.option("--nproc", type=click.IntRange(1), help="Ranks; all GPUs of this machine by default, else 2 on CPU.")
@click.option("--budget", type=float, default=220, show_default=True, help="Seconds after which nothing is begun.")
@click.option("--line", type=float, help="Line rate between two ranks of a node in GB/s, each way, if you know it.")
@click.option("--journal", type=click.Path(path_type=Path), help="Where to keep what was measured; OUTPUT.journal.")
def calibrate(
    output: Path, device: str | None, nproc: int | None, budget: float, line: float | None, journal: Path | None
) -> None:
    """Measure this machine, and write the profile that predictions are made from.

    Runs emitted layers of several shapes, step by step and together, and what no step shows. What was measured is kept
    in a journal: start again to go on where it ended. Use the profile with --profile FILE.
    """
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs
    from epsc.calibrate.probes import compile_probes  # noqa: PLC0415
    from epsc.calibrate.written import Head, profile_text  # noqa: PLC0415

    gpus = launch.gpus()
    ranks = nproc or gpus or 2
    backend = "cuda" if gpus else "cpu"
    name = device or _device(backend)
    kept = journal or output.with_name(output.name + ".journal")
    folder = output.with_name(output.name + ".probes")
    for refused in compile_probes(folder, name if name in DEVICES else "h200", backend, ranks):
        click.echo(f"{refused}: {ranks} ranks cannot have it", err=True)
    code = _run(launch.torchrun(ranks), launch.environment(ranks), folder, kept, budget)
    found = _found(kept)
    needed = [
        each
        for each in ("bf16_flops", "copy_bytes_per_s", "transfer_s", "round_trip_s")
        if f"machine: {each}" not in found
    ]
    if code or needed:
        why = f"the ranks ended with exit code {code}" if code else f"the budget ended before {needed[0]}"
        click.echo(f"{why}; what was measured is in {kept}: start again to go on", err=True)
        raise SystemExit(EXIT_PROGRAM)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    head = Head(name, backend, ranks, datetime.now(UTC).date().isoformat(), line)
    text = profile_text(found, manifest, head)
    made = parse(text, output.stem, str(output))  # what it writes it must be able to read
    driver.save(output, text)
    click.echo(f"wrote {output}: {len(made.device.tables)} tables, {len(made.device.besides)} pairs")


def _device(backend: str) -> str:
    if backend == "cpu":
        return "cpu"
    import torch

    gpu = str(torch.cuda.get_device_name()).lower()
    found = next((known for known in DEVICES if known in gpu), None)
    if found is None:
        raise EpsError(
            Diagnostic(
                "unknown-device",
                f"`{gpu}` is no known device",
                help=f"--device NAME; {did_you_mean(gpu, DEVICES) or ''}",
            )
        )
    return found


def _run(torchrun: list[str], environment: dict[str, str], folder: Path, journal: Path, budget: float) -> int:
    # From the folder above this package, so that ranks find the epsc that started them, installed or not.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    command = [*torchrun, "-m", "epsc.calibrate", str(folder), "--journal", str(journal), "--budget", str(budget)]
    return subprocess.run(command, env={**environment, "PYTHONPATH": path}, check=False).returncode


def _found(journal: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise EpsError(Diagnostic("bad-journal", f"{journal} is no journal: {error}", help="delete it")) from None
    return found
