"""Run what `benchmarks.compile_all` compiled: `python -m benchmarks.run_all build/gpu --tokens 1024 8192`.

Takes the largest number of ranks that was compiled and that this machine has GPUs for (CPU ranks where there is none),
or those of --ep, and ends within --budget. Options that are not listed here go to `epsc.bench`: see
`python -m epsc.bench --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from epsc import launch
from epsc.bench.start import compare
from epsc.bench.table import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ep", type=int, nargs="+", help="numbers of ranks")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for results-epN.json")
    given, more = parser.parse_known_args()
    compiled = sorted({p["ep"] for p in json.loads((given.folder / "manifest.json").read_text())["programs"]})
    gpus = launch.gpus()
    fits = [ep for ep in given.ep or compiled if ep in compiled and (ep <= gpus or not gpus)]
    chosen = fits if given.ep else fits[-1:]
    if not chosen:
        raise SystemExit(f"compiled for ep = {compiled}, but there are {gpus} GPUs; compile again with --ep")
    given.out.mkdir(parents=True, exist_ok=True)
    results = []
    for ep in chosen:
        results.append(compare(given.folder, ep, more, given.out / f"results-ep{ep}.json", given.budget / len(chosen)))
    print("\n\n".join(map(table, results)))
    sys.exit(3 if any(found["failed"] for found in results) else 0)


if __name__ == "__main__":
    main()
