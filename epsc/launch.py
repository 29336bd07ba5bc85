"""Start an emitted program on several ranks of this machine, as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from epsc import driver
from epsc.ir.errors import Diagnostic, EpsError

if TYPE_CHECKING:
    from epsc.codegen import Program

CPU_RANKS = 4


def gpus() -> int:
    """CUDA devices that torch sees here. Raises EpsError when there is no torch."""
    try:
        import torch
    except ModuleNotFoundError:
        raise EpsError(Diagnostic("no-torch", "to run a program needs torch", help="pip install torch")) from None

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_ranks(fits: Callable[[int], bool]) -> int:
    """All GPUs, else 4 CPU ranks; the largest such number for which `fits` says that the layer can be compiled."""
    most = gpus() or CPU_RANKS
    return next((ranks for ranks in range(most, 0, -1) if fits(ranks)), most)


def run(program: Program, ranks: int, arguments: list[str], keep: Path | None = None) -> int:
    """Run `program` under torchrun on `ranks` ranks and wait; its output goes to ours. The exit code.

    The program is written to the folder `keep`, or to one that is deleted afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="epsc-") as scratch:
        path = (keep or Path(scratch)) / f"{program.name}.py"
        driver.save(path, program.text)
        command = [*torchrun(ranks), str(path), *arguments]
        return subprocess.run(command, env=environment(ranks), check=False).returncode


def torchrun(ranks: int) -> list[str]:
    """The command that starts so many ranks of what stands behind it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    # A free port of this machine, and no look-up of its name, which may lead outside.
    return [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]


def environment(ranks: int) -> dict[str, str]:
    """Ours, with the cores shared among ranks: a product that takes all of them on each rank is slower for all, and
    torchrun, left to choose, says at length that it takes one."""
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
