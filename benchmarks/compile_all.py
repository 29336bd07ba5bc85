"""Compile every program that a comparison needs: `python -m benchmarks.compile_all -o build/gpu --ep 1 2`.

Writes a program for each contender and number of ranks, and `manifest.json`, which says what they and their layer
are. The machine that runs them (`benchmarks.run_all`) needs torch, that folder and this repository, and no more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from epsc import driver
from epsc.bench.programs import Wanted, compile_all
from epsc.ir.errors import EpsError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path("examples/deepseek_v2.eps"))
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    parser.add_argument("--ep", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "-s", "--schedule", nargs="+", metavar="NAME[:LET=N,...]", help="all that are not auto, if none"
    )
    parser.add_argument("-D", "--define", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--preset")
    parser.add_argument("--layer")
    given = parser.parse_args()
    refusals = []

    def refused(name: str, error: EpsError) -> None:
        refusals.append(name)
        print(f"{name}: refused\n{error}", file=sys.stderr)

    try:
        defines = dict(text.split("=", 1) for text in given.define)
        options = driver.Options(defines, preset=given.preset, layer=given.layer)
        wanted = [Wanted.parse(text) for text in given.schedule] if given.schedule else None
        made = compile_all(driver.read(given.file), options, wanted, given.ep, given.output, refused)
    except EpsError as error:
        raise SystemExit(str(error)) from None
    for program in made:
        print(f"{given.output / program['file']}: {program['lines']} lines, {program['steps']} steps")
    sys.exit(1 if refusals else 0)


if __name__ == "__main__":
    main()
