"""Start ranks, measure, print: `python -m benchmarks.models`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

from benchmarks import models
from benchmarks.models.block import ROOT, block
from benchmarks.models.cases import CASES, released
from benchmarks.models.prefill import whole
from benchmarks.models.table import Table
from epsc import launch
from epsc.bench.ranks import Ranks


def work(given: argparse.Namespace) -> int:
    """One rank."""
    warnings.simplefilter("ignore")
    began = time.monotonic()
    ranks = Ranks.join(given.device, 120)
    table = Table(ranks, began + given.budget)
    loads = given.tokens or ([32, 64] if given.small else [1024, 8192])
    for case in CASES:
        if given.only in ("", case.family):
            do = lambda case=case: block(case, ranks, table, loads, given.small, given.rounds)  # noqa: E731
            table.attempt(f"{case.name} block", 40, do)
            released()
    if given.only in ("", "model"):
        sequences, length = (2, 16) if given.small else (8, 1024)
        table.attempt("the model", 50, lambda: whole(ranks, table, sequences, length, given.small, given.rounds))
    failed = sorted({each for failed in ranks.everyone(table.failed) for each in failed})
    if ranks.rank == 0:
        device = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"
        print(f"\n{ranks.world} x {device}, torch {torch.__version__}, transformers {transformers.__version__}, bf16")
        print("ms: median of rounds, of each the slowest rank; speed: tokens per ms, over those of the first line")
        print("\n".join(table.lines))
        print(f"\n{'FAILED' if failed else 'all equal'}, {time.monotonic() - began:.0f} s", flush=True)
        if given.told:
            given.told.write_text("\n".join(failed))
    ranks.settle()
    if ranks.world > 1:
        dist.destroy_process_group()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=models.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, help="all GPUs, or 2 CPU ranks")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, nargs="+", help="per rank, for blocks: 1024 and 8192")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", choices=["", "model", *(case.family for case in CASES)])
    parser.add_argument("--budget", type=float, default=200, help="seconds")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if "RANK" in os.environ:
        return work(given)
    ranks = given.ranks or launch.gpus() or 2
    environment = launch.environment(ranks)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        # Ranks that end well write no more behind the table.
        told = Path(folder) / "failed"
        command = [*launch.torchrun(ranks), "-m", "benchmarks.models", *sys.argv[1:], "--told", str(told)]
        code = subprocess.run(command, env=environment, check=False).returncode
        return code or int(not told.exists() or bool(told.read_text()))


if __name__ == "__main__":
    sys.exit(main())
