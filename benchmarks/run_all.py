"""Run what `benchmarks.compile_all` compiled, in one command: `python -m benchmarks.run_all build/gpu`.

Starts `benchmarks.serial_vs_handwritten` under torchrun for the numbers of ranks that were compiled and that this
machine has GPUs for (CPU ranks where there is no GPU), within a time budget, and prints every table last. Where a
program breaks its process, that program is left out and the rest is started again, once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.serial_vs_handwritten import table


def start(folder: Path, ep: int, given: argparse.Namespace, skip: list[str], out: Path, seconds: float) -> int:
    """Run one comparison on `ep` ranks; its exit code, or 124 where it had to be stopped."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ep)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += ["-m", "benchmarks.serial_vs_handwritten", str(folder), "--json", str(out)]
    command += ["--tokens", *map(str, given.tokens), "--rounds", str(given.rounds), "--budget", str(seconds - 30)]
    command += ["--kernels"] if given.kernels else []
    command += ["--only", *given.only] if given.only else []
    command += ["--skip", *skip] if skip else []
    print("$", *command[1:], flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ep)))
    # A group of its own, so that stopping it stops its ranks.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return 124


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/gpu"))
    parser.add_argument(
        "--ep", type=int, nargs="+", help="numbers of ranks; by default the most that there are GPUs for"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8192], help="per rank")
    parser.add_argument("--only", nargs="+", help="programs by name; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kernels", action="store_true", help="also profile each contender at the largest load")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for results-epN.json")
    given = parser.parse_args()

    began = time.monotonic()
    compiled = sorted({p["ep"] for p in json.loads((given.folder / "manifest.json").read_text())["programs"]})
    gpus = torch.cuda.device_count()
    fits = [ep for ep in given.ep or compiled if ep in compiled and (ep <= gpus or not gpus)]
    chosen = fits if given.ep else fits[-1:]
    if not chosen:
        raise SystemExit(f"compiled for ep = {compiled}, but there are {gpus} GPUs; compile again with --ep")
    given.out.mkdir(parents=True, exist_ok=True)
    tables, failed = [], False
    for i, ep in enumerate(chosen):
        out = given.out / f"results-ep{ep}.json"
        share = (given.budget - (time.monotonic() - began)) / (len(chosen) - i)
        until, skip = time.monotonic() + share, []
        for _ in range(2):
            out.unlink(missing_ok=True)
            code = start(given.folder, ep, given, skip, out, until - time.monotonic())
            found = json.loads(out.read_text()) if out.exists() else {}
            at = found.get("at")
            if code == 0 or not at or at in skip or until - time.monotonic() < 120:
                break
            print(f"exit code {code} while at {at}: again, without it", flush=True)
            skip.append(at)
        failed |= code != 0 or bool(skip)
        broken = [f"{name} broke its process, and was left out" for name in skip]
        if code:
            broken.append(f"the last process ended with exit code {code}, at {at or 'no program in particular'}")
        if found.get("loads"):
            tables.append("\n".join([table(found), *broken]))
        else:
            tables.append("\n".join([f"ep = {ep}: nothing was measured", *broken]))
    print(f"\n{'=' * 100}\n" + f"\n\n{'=' * 100}\n".join(tables), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
