"""`epsc calibrate`: measure this machine, and write its cluster profile."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from epsc import driver
from epsc.calibrate.written import NEEDED, Head, profile_text
from epsc.commands.report import EXIT_PROGRAM
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.machine.cluster import DEVICES
from epsc.machine.device import Origin
from epsc.machine.profile import load, parse, shipped_for

WORTH = 40.0
"""Seconds that must be left for another start."""


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The profile to write.")
@click.option("--device", metavar="NAME", help="What a cluster calls it; from the name of the GPU by default, or cpu.")
@click.option("--nproc", type=click.IntRange(1), help="Ranks; all GPUs of this machine by default, else 2 on CPU.")
@click.option("--budget", type=float, default=220, show_default=True, help="Seconds after which nothing is begun.")
@click.option("--line", type=float, help="Line rate between two ranks of a node in GB/s, each way, if you know it.")
@click.option("--journal", type=click.Path(path_type=Path), help="Where to keep what was measured; OUTPUT.journal.")
@click.option(
    "--only",
    type=click.Choice(["compile", "write"]),
    help="Only write the programs to measure, or only the profile of what the journal holds: to measure elsewhere.",
)
def calibrate(
    output: Path,
    device: str | None,
    nproc: int | None,
    budget: float,
    line: float | None,
    journal: Path | None,
    only: str | None,
) -> None:
    """Measure this machine, and write the profile that predictions are made from.

    Runs emitted layers of several shapes, step by step and together, and what no step shows. What was measured is kept
    in a journal: start again to go on where it ended. What fails is named, and left out: of a device that has a
    measured profile already, that counts where this one says nothing. Use the profile with --profile FILE.

    A machine that has torch and this package, but nothing else, can measure for another: there --only compile writes
    FILE.probes, here `torchrun --nproc-per-node N -m epsc.calibrate FILE.probes --journal FILE.journal` measures, and
    there --only write makes the profile.
    """
    from epsc import launch  # noqa: PLC0415 - asks torch about GPUs
    from epsc.calibrate.probes import compile_probes  # noqa: PLC0415

    gpus = 0 if only else launch.gpus()
    ranks = nproc or gpus or 2
    known = DEVICES[device] if device is not None and device in DEVICES else None
    backend = known.backend if only and known else "cuda" if gpus else "cpu"
    name = device or _device(backend)
    kept = journal or output.with_name(output.name + ".journal")
    folder = output.with_name(output.name + ".probes")
    if only != "write":
        for refused in compile_probes(folder, name if name in DEVICES else "h200", backend, ranks):
            click.echo(f"{refused}: {ranks} ranks cannot have it", err=True)
    if only == "compile":
        click.echo(f"measure it: torchrun --nproc-per-node {ranks} -m epsc.calibrate {folder} --journal {kept}")
        return
    code = 0 if only else _measure(ranks, folder, kept, budget)
    _write(output, _found(kept), folder, Head(name, backend, ranks, _today(), line, _base(name, ranks, backend)), code)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _write(output: Path, found: dict[str, Any], folder: Path, head: Head, code: int) -> None:
    for failed, reason in found.get("failed", {}).items():
        click.echo(f"{failed} failed, and is left out: {reason.splitlines()[-1]}", err=True)
    missing = [each for each in NEEDED if f"machine: {each}" not in found]
    begun = any(name.startswith("machine: ") for name in found)
    if not begun or (missing and not head.base):
        why = f"the ranks ended with exit code {code}" if code else f"{missing[0]} was not measured"
        click.echo(f"{why}; what was measured is in the journal: start again to go on", err=True)
        raise SystemExit(EXIT_PROGRAM)
    manifest = json.loads(driver.read(folder / "manifest.json").text)
    text = profile_text(found, manifest, head)
    made = parse(text, output.stem, str(output))  # what it writes it must be able to read
    driver.save(output, text)
    click.echo(f"wrote {output}: {len(made.device.tables)} tables, {len(made.device.besides)} pairs")
    if code:
        raise SystemExit(EXIT_PROGRAM)


def _base(device: str, ranks: int, backend: str) -> str | None:
    """The shipped profile of the device, if somebody measured it, for what is not measured now."""
    name = shipped_for(device, ranks, 1) if backend == "cuda" else None
    return name if name and load(name).device.origin is Origin.MEASURED else None


def _measure(ranks: int, folder: Path, journal: Path, budget: float) -> int:
    """Start the ranks, and again without what broke them; the last exit code."""
    from epsc import launch  # noqa: PLC0415 - as above

    until = time.monotonic() + budget
    while True:
        left = until - time.monotonic()
        code = _run(launch.torchrun(ranks), launch.environment(ranks), folder, journal, left)
        found = _found(journal)
        at = found.get("at")
        if code == 0 or at is None or at in found.get("failed", {}):
            return code
        found.setdefault("failed", {})[at] = f"its process ended with exit code {code}"
        found.pop("at")
        driver.save(journal, json.dumps(found, indent=1) + "\n")
        if until - time.monotonic() < WORTH:
            return code
        click.echo(f"exit code {code} while at {at}: again, without it", err=True)


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
