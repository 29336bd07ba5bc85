"""Rows that go home from the product itself (`use direct`) against those that a kernel brings (`use put`), on 2 GPUs.

    python -m benchmarks.direct compile -o build/direct
    python -m benchmarks.direct run build/direct           # under 4 minutes, a short table last

`put` and `direct` send all tokens by copy engine and bring each copy home; `one_sided` brings one sum per rank. Every
program is checked first, with fresh inputs and all memory full of NaN. What is not listed here goes to `epsc.bench`:
see `python -m epsc.bench --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from epsc import driver, launch
from epsc.bench.programs import Wanted, compile_all
from epsc.bench.start import compare
from epsc.ir.errors import EpsError
from epsc.ir.source import Source

EXAMPLES = Path(__file__).parents[1] / "examples"
SCHEDULES = """
schedule put    { use copy for sent  use put for back }
schedule direct { use copy for sent  use direct for back }
"""
ROUNDS = "8"


CASES = {"deepseek_v2": (4096, 8192), "qwen3_30b_a3b": (8192,), "mixtral_8x7b": (8192,)}
"""Layer -> tokens per rank."""


def compile_programs(given: argparse.Namespace) -> None:
    """Write the programs of every case."""

    def refused(name: str, error: EpsError) -> None:
        raise SystemExit(f"{name}: refused\n{error}")

    for layer in given.layers:
        text = (EXAMPLES / f"{layer}.eps").read_text(encoding="utf-8")
        defines = {} if given.preset else {"tokens": str(max(CASES[layer]))}
        wanted = map(Wanted.parse, ("put", "direct", "one_sided"))
        options = driver.Options(defines, preset=given.preset)
        out = given.output / layer
        compile_all(Source(f"{layer}.eps", text + SCHEDULES), options, wanted, [given.ep], out, refused)
        print(out)


def run(given: argparse.Namespace, more: list[str]) -> int:
    """Measure what was compiled; the exit code."""
    lines: list[str] = []
    failed: list[str] = []
    more = more if "--rounds" in more else [*more, "--rounds", ROUNDS]
    for layer in given.layers:
        place = given.folder / layer
        programs = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["programs"]
        (ep,), names = {program["ep"] for program in programs}, [program["name"] for program in programs]
        if 0 < launch.gpus() < ep:
            raise SystemExit(f"compiled for {ep} ranks, but there are {launch.gpus()} GPUs")
        tokens = given.tokens or CASES[layer]
        arguments = ["--no-steps", "--tokens", *map(str, tokens), "--only", *names, *more]
        found = compare(place, ep, arguments, place / "results.json", given.budget / len(given.layers))
        lines += table(layer, found, names)
        failed += [f"FAILED: {layer}, {f['name']}, {f['where']}: {f['reason']}" for f in found["failed"]]
    print("\n".join(["ms of a forward, as it is or as a graph, whichever is faster; relative error to fp32", *lines]))
    print("\n".join(failed), end="\n" if failed else "")
    return 3 if failed or not lines else 0


def table(layer: str, found: dict[str, Any], names: list[str]) -> list[str]:
    """A line for each load: the best of each program, and how many times as fast as `put` `direct` is."""
    lines = []
    for cell in found["cells"]:
        best: dict[str, tuple[float, str]] = {}
        for name, c in cell["contenders"].items():
            plain, _, graph = name.partition("+")
            best[plain] = min(best.get(plain, (float("inf"), "")), (c["median"], f" {graph}" if graph else ""))
        figures = [f"{name} {best[name][0]:.3f}{best[name][1]}" for name in names if name in best]
        if {"put", "direct"} <= best.keys():
            figures.append(f"direct is {best['put'][0] / best['direct'][0]:.2f}x put")
        worst = max((c["error"] for c in cell["contenders"].values()), default=float("nan"))
        lines.append(f"{layer:14} T = {cell['tokens']:5}  {'  '.join(figures)}  error {worst:.1e}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    compiling = commands.add_parser("compile")
    compiling.add_argument("-o", "--output", type=Path, default=Path("build/direct"))
    compiling.add_argument("--ep", type=int, default=2)
    compiling.add_argument("--preset", help="small, for CPU ranks")
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--tokens", type=int, nargs="+", help="instead of those of each layer")
    running.add_argument("--budget", type=float, default=230, help="seconds for all of it")
    for each in (compiling, running):
        each.add_argument("--layers", nargs="+", choices=CASES, default=list(CASES), help="some of them only")
    given, more = parser.parse_known_args()
    if given.command == "run":
        sys.exit(run(given, more))
    if more:
        parser.error(f"what is {' '.join(more)}?")
    compile_programs(given)


if __name__ == "__main__":
    main()
